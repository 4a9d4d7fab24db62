//! Wildcards and variables in policy texts.

use super::condition::Context;

/// A text with `*` and `?`, its `${variables}` filled in from the request.
pub(crate) struct Pattern(Vec<Token>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    One,
    Any,
    Char(char),
}

impl Pattern {
    /// `None` if a variable has no value in this request.
    pub(crate) fn parse(text: &str, context: &Context) -> Option<Self> {
        let mut tokens = Vec::new();
        for piece in pieces(text)? {
            match piece {
                Piece::Text(text) => tokens.extend(Self::plain(text).0),
                Piece::Variable(name) => {
                    tokens.extend(value(name, context)?.chars().map(Token::Char))
                }
            }
        }
        Some(Self(tokens))
    }

    /// The text with its variables filled in, wildcards being ordinary characters.
    pub(crate) fn literal(text: &str, context: &Context) -> Option<String> {
        let mut literal = String::new();
        for piece in pieces(text)? {
            match piece {
                Piece::Text(text) => literal.push_str(text),
                Piece::Variable(name) => literal.push_str(&value(name, context)?),
            }
        }
        Some(literal)
    }

    /// A pattern without variables.
    pub(crate) fn plain(text: &str) -> Self {
        Self(
            text.chars()
                .map(|c| match c {
                    '*' => Token::Any,
                    '?' => Token::One,
                    other => Token::Char(other),
                })
                .collect(),
        )
    }

    /// Takes at most pattern times text steps, whatever the pattern.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut token) = (0, 0);
        // Where to continue when the rest fails: the last star, and one more character given to it.
        let mut retry: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.0.get(token) {
                Some(Token::Any) => {
                    retry = Some((token, at));
                    token += 1;
                }
                Some(Token::One) => {
                    (at, token) = (at + 1, token + 1);
                }
                Some(Token::Char(wanted)) if *wanted == text[at] => {
                    (at, token) = (at + 1, token + 1);
                }
                _ => {
                    let Some((star, taken)) = retry else {
                        return false;
                    };
                    retry = Some((star, taken + 1));
                    (at, token) = (taken + 1, star + 1);
                }
            }
        }
        self.0[token..].iter().all(|rest| *rest == Token::Any)
    }
}

enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

/// `None` if a `${` is never closed.
fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        pieces.extend([Piece::Text(before), Piece::Variable(name)]);
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    Some(pieces)
}

/// The condition keys that a text has as variables.
pub(crate) fn variables(text: &str) -> Vec<&str> {
    let variable = |piece| match piece {
        Piece::Variable(name) => Some(name),
        Piece::Text(_) => None,
    };
    let names = pieces(text).unwrap_or_default().into_iter();
    let names = names.filter_map(variable);
    let keys = names.map(|name| name.split_once(',').map_or(name, |(key, _)| key).trim());
    keys.filter(|key| !matches!(*key, "*" | "?" | "$"))
        .collect()
}

fn value(name: &str, context: &Context) -> Option<String> {
    if let "*" | "?" | "$" = name {
        return Some(name.to_owned());
    }
    let (key, default) = match name.split_once(',') {
        Some((key, default)) => (
            key.trim(),
            default
                .trim()
                .strip_prefix('\'')
                .and_then(|d| d.strip_suffix('\'')),
        ),
        None => (name.trim(), None),
    };
    context.get(key).or(default).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match_as_in_policies() {
        let cases = [
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*b*", "abab", true),
            ("ec2:Describe*", "ec2:DescribeInstances", true),
            ("", "x", false),
        ];
        for (pattern, text, matches) in cases {
            assert_eq!(
                Pattern::plain(pattern).matches(text),
                matches,
                "{pattern} on {text}"
            );
        }
        // Naive backtracking would not end within a lifetime.
        let pattern = format!("{}c", "a*".repeat(40));
        assert!(!Pattern::plain(&pattern).matches(&"ab".repeat(500)));
    }

    #[test]
    fn variables_are_filled_in_as_ordinary_characters() {
        let mut context = Context::default();
        context.set("aws:username", "a*");
        let matches =
            |pattern: &str, text| Pattern::parse(pattern, &context).map(|p| p.matches(text));
        assert_eq!(matches("user/${aws:username}", "user/a*"), Some(true));
        assert_eq!(matches("user/${aws:username}", "user/ab"), Some(false));
        assert_eq!(matches("${*}", "x"), Some(false));
        assert_eq!(matches("${aws:userid}", "x"), None);
        assert_eq!(matches("${aws:userid, 'x'}", "x"), Some(true));
        assert_eq!(matches("${aws:username", "x"), None);
    }
}
