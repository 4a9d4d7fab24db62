//! Pure modules of the agent and the client, as they stand there.

use std::time::Duration;

/// The agent's readers of STS answers, of trust policies and of the enrolment's lines.
#[path = "../../../agent/src/identity"]
pub(crate) mod identity {
    mod answer;
    #[expect(dead_code, reason = "nobody is answered here")]
    pub(super) mod lines;
    pub(super) mod trust_policy;

    /// All that is read of an answer.
    pub(crate) fn sts_answer(input: &[u8]) {
        if let Ok(identity) = answer::identity(input) {
            assert!(!identity.account.is_empty() && !identity.user_id.is_empty());
        }
        let _ = answer::attested(input);
        let _ = answer::error_code(input);
    }

    /// One line and what is left of the limit.
    pub(crate) fn line(input: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
        let mut left = input;
        let read = lines::read_line(&mut left, limit);
        crate::modules::now(read).map(|line| line.to_vec())
    }
}

/// The client's reader of trust policies.
#[path = "../../../client/src/iam"]
mod iam {
    #[expect(dead_code, reason = "the client decodes what the SDK gives")]
    pub(super) mod trust;
}

/// The client's reader of the files of the AWS command.
#[path = "../../../client/src/identity/aws"]
mod aws {
    #[expect(dead_code, reason = "the client reads nested properties")]
    pub(super) mod ini;

    pub(super) fn read(text: &str) {
        if let Ok(ini) = ini::Ini::parse(text) {
            let _ = ini.section("default");
        }
        assert!(text.starts_with(ini::without_comment(text)));
    }
}

/// Policies that AWS answers with, and files of the AWS command. What the agent takes for an
/// attestation role lets nobody of AWS in without MFA, by the client's reader too.
pub(crate) fn policies(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    const BOUND: u64 = 43_200;
    let good = identity::trust_policy::check_trust_policy(text, Duration::from_secs(BOUND));
    if let (Ok(()), Ok(open)) = (good, iam::trust::unproven(text, BOUND)) {
        let of_aws = open.iter().find(|who| who.contains("` with"));
        assert!(of_aws.is_none(), "{of_aws:?} of {text}");
    }
    aws::read(text);
}

/// Lines of the enrolment.
pub(crate) fn lines(input: &[u8]) {
    let Some((limit, input)) = input.split_first() else {
        return;
    };
    let limit = usize::from(*limit) * 16 + 1;
    match identity::line(input, limit) {
        Ok(line) => {
            assert!(line.len() < limit && !line.contains(&b'\n'));
            assert_eq!(&input[..line.len()], line);
        }
        Err(_) => {
            assert!(input.len() + 1 > limit || !input.ends_with(b"\n") || input.contains(&b'\n'))
        }
    }
}

/// What a future says that waits for nothing.
fn now<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("it waits for more than there is"),
    }
}
