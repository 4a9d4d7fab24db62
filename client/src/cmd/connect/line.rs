//! The words behind `--` -> the line that the target's shell reads.

use crate::error::Error;

/// One word is a line for the target's shell, as it stands. Several are a program and its
/// arguments, and arrive as they were given here: `-- sh -c 'exit 7'` ends with 7. (`ssh` joins
/// them with spaces, and `sh -c exit 7` ends with 0.) `None`: no command, a shell.
pub(super) fn of(words: &[String]) -> Result<Option<String>, Error> {
    match words {
        [] => Ok(None),
        [line] => Ok(Some(line.clone())),
        words => shlex::try_join(words.iter().map(String::as_str))
            .map(Some)
            .map_err(|_| Error::usage("a command cannot hold a NUL byte")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Option<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        of(&words).unwrap()
    }

    #[test]
    fn one_word_is_a_line_and_several_are_words() {
        assert_eq!(line(&[]), None);
        assert_eq!(
            line(&["cd /srv && ls *.log"]).as_deref(),
            Some("cd /srv && ls *.log")
        );
        assert_eq!(
            line(&["systemctl", "status", "nginx"]).as_deref(),
            Some("systemctl status nginx")
        );
        for words in [
            &["sh", "-c", "echo out; echo err >&2; exit 5"] as &[&str],
            &["echo", "it's", "", "a b", "$HOME", "*"],
        ] {
            let line = line(words).unwrap();
            assert_eq!(shlex::split(&line).unwrap(), words, "{line}");
        }
    }

    #[test]
    fn a_nul_byte_is_refused() {
        let words = ["echo".to_owned(), "a\0b".to_owned()];
        assert!(of(&words).is_err());
    }
}
