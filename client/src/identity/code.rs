//! Where the six digits come from: the command line, the environment, `mfa_process`, the terminal.

use std::process::Stdio;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncReadExt as _;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::config::variable;
use crate::context::Context;

use super::aws::AwsProfile;
use super::sts::now;
use super::terminal::{self, TerminalError};

/// AWS devices change their code that often (RFC 6238).
const STEP_SECONDS: i64 = 30;
/// `mfa_process` may wait for a touch of a key.
const PROCESS_DEADLINE: Duration = Duration::from_secs(120);
const PROCESS_OUTPUT: u64 = 4096;
/// Typing errors that are forgiven before the question is given up.
const TRIES: usize = 3;

/// Six digits.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct MfaCode(String);

impl MfaCode {
    /// Takes exactly six digits; spaces around and between are forgiven.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = Zeroizing::new(String::with_capacity(6));
        for c in text.trim().chars().filter(|c| *c != ' ') {
            if !c.is_ascii_digit() || digits.len() == 6 {
                return None;
            }
            digits.push(c);
        }
        (digits.len() == 6).then(|| Self(std::mem::take(&mut *digits)))
    }

    /// The digits, for the one request that carries them.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for MfaCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MfaCode(…)")
    }
}

/// Why there is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// Not six digits.
    #[error("{0} is not six digits")]
    Digits(&'static str),
    /// The program did not print one.
    #[error("`mfa_process` of the AWS profile gave no code: {0}")]
    Process(String),
    /// Nobody to ask.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
}

/// Gets a code that AWS has not seen. `given` comes from the command line; `last_used` is when
/// this client last spent one.
pub(crate) async fn fresh(
    context: &Context,
    profile: &AwsProfile,
    given: Option<&SecretString>,
    last_used: Option<i64>,
) -> Result<MfaCode, CodeError> {
    if let Some(code) = given {
        return MfaCode::parse(code.expose_secret()).ok_or(CodeError::Digits("--mfa-code"));
    }
    // A code of the environment is spent with its first use in this process.
    if let Some(code) = context
        .mfa_code
        .as_ref()
        .filter(|_| context.memory.spend_environment_code())
    {
        return MfaCode::parse(code.expose_secret()).ok_or(CodeError::Digits(variable::MFA_CODE));
    }
    if profile.mfa_process.is_none() && !context.may_ask {
        return Err(TerminalError::None.into());
    }
    wait_for_next(context, last_used).await;
    match &profile.mfa_process {
        Some(command) => from_process(command).await,
        None => from_terminal(profile).await,
    }
}

/// AWS burns a code with its first use: waits for the next step and says so.
async fn wait_for_next(context: &Context, last_used: Option<i64>) {
    let wait = last_used.map_or(0, |used| seconds_to_next(used, now()));
    if let Ok(wait) = u64::try_from(wait)
        && wait > 0
    {
        context.printer.note(format!(
            "AWS burns each MFA code, and this one was just used; the next one comes in {wait} s"
        ));
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
}

/// Seconds until the step after the one that a code was used in; 0 when that is over.
fn seconds_to_next(used: i64, now: i64) -> i64 {
    let next = (used.div_euclid(STEP_SECONDS) + 1) * STEP_SECONDS;
    // A clock that was set back must not make anybody wait for long.
    (next - now).clamp(0, STEP_SECONDS)
}

async fn from_terminal(profile: &AwsProfile) -> Result<MfaCode, CodeError> {
    let device = profile.mfa_serial.as_deref().unwrap_or("the MFA device");
    let mut question = format!("MFA code of {device}: ");
    for _ in 0..TRIES {
        let answer = terminal::ask_hidden(&question).await?;
        if let Some(code) = MfaCode::parse(&answer) {
            return Ok(code);
        }
        question = "Six digits, please: ".to_owned();
    }
    Err(CodeError::Digits("the answer"))
}

/// Runs the program without a shell. Its stdin is closed: `proxy` has data there.
async fn from_process(command: &str) -> Result<MfaCode, CodeError> {
    let failed = |text: String| CodeError::Process(text);
    let words = split_words(command).ok_or_else(|| failed("a quote is not closed".to_owned()))?;
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| failed("it is empty".to_owned()))?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_remove(variable::MFA_CODE)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("`{program}` did not start: {error}")))?;
    let mut output = Zeroizing::new(Vec::with_capacity(64));
    let stdout = child.stdout.take();
    let run = async {
        if let Some(stdout) = stdout {
            stdout.take(PROCESS_OUTPUT).read_to_end(&mut output).await?;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(PROCESS_DEADLINE, run)
        .await
        .map_err(|_| failed("it did not end in time".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(failed(format!("it ended with {status}")));
    }
    std::str::from_utf8(&output)
        .ok()
        .and_then(|text| text.lines().find_map(MfaCode::parse))
        .ok_or_else(|| failed("no line of its output is six digits".to_owned()))
}

/// Splits like a shell does, without expanding anything. `None`: a quote is open.
fn split_words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None | Some('"'), '\\') => word.get_or_insert_default().push(chars.next()?),
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_six_digits() {
        assert!(MfaCode::parse(" 123 456\n").is_some());
        for bad in ["", "12345", "1234567", "12345a", "１２３４５６", "-12345"] {
            assert!(MfaCode::parse(bad).is_none(), "{bad}");
        }
        assert_eq!(
            format!("{:?}", MfaCode::parse("123456").unwrap()),
            "MfaCode(…)"
        );
    }

    #[test]
    fn the_next_code_is_waited_for_only_in_the_step_of_the_last() {
        assert_eq!(seconds_to_next(60, 60), 30);
        assert_eq!(seconds_to_next(60, 89), 1);
        assert_eq!(seconds_to_next(60, 90), 0);
        assert_eq!(seconds_to_next(60, 4000), 0);
        assert_eq!(seconds_to_next(4000, 60), 30);
    }

    #[test]
    fn words_are_split_without_a_shell() {
        assert_eq!(
            split_words(r#"totp "my key" --for 'a b' c\ d $HOME "" "#).unwrap(),
            ["totp", "my key", "--for", "a b", "c d", "$HOME", ""]
        );
        assert_eq!(split_words("totp 'open"), None);
        assert_eq!(split_words("totp \\"), None);
    }

    #[tokio::test]
    async fn a_program_prints_the_code() {
        assert_eq!(
            from_process("printf '%s\\n' ' 123456 '").await.unwrap(),
            MfaCode::parse("123456").unwrap()
        );
        let error = |command: &'static str| async move {
            from_process(command).await.unwrap_err().to_string()
        };
        assert!(error("false").await.contains("exit status: 1"));
        assert!(error("echo none").await.contains("no line of its output"));
        assert!(error("/does/not/exist").await.contains("did not start"));
        assert!(error("").await.contains("empty"));
    }
}
