//! STS answers, read strictly (AWS-FACTS.md B.4, answer; CVE-2020-16250).
//!
//! The whole body is one XML document of the expected root in STS's namespace. Every element that
//! is needed occurs exactly once at its exact path. No document type, entity, processing
//! instruction, CDATA, attribute or prefix, and nothing after the end. What is not needed is
//! walked over without being kept: AssumeRole's credentials never leave the body's buffer.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// STS's namespace.
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
/// Levels of elements; STS uses four.
const DEPTH_LIMIT: usize = 8;
/// The longest value that is kept, in bytes.
const VALUE_LIMIT: usize = 2048;

/// Why an answer is not what STS sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AnswerFault {
    /// Not well-formed XML in UTF-8.
    #[error("the body is not well-formed XML")]
    Syntax,
    /// XML that STS never sends.
    #[error("the body has {0}, which STS never sends")]
    Unexpected(&'static str),
    /// Another document.
    #[error("the root element is not `{0}` in STS's namespace")]
    Root(&'static str),
    /// A needed element is absent or occurs twice.
    #[error("`{path}` occurs {count} times, not once")]
    Count {
        /// Which.
        path: &'static str,
        /// How often.
        count: usize,
    },
    /// A value that STS never sends.
    #[error("`{0}` has an unusable value")]
    Value(&'static str),
}

/// Who STS says is calling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) account: String,
    pub(super) user_id: String,
    pub(super) arn: String,
    pub(super) request_id: String,
}

/// The echo of an assumed role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attested {
    pub(super) arn: String,
    pub(super) request_id: String,
}

/// Reads GetCallerIdentity's answer.
pub(super) fn identity(body: &[u8]) -> Result<Identity, AnswerFault> {
    let [account, user_id, arn, request_id] = read(
        body,
        "GetCallerIdentityResponse",
        [
            "GetCallerIdentityResult/Account",
            "GetCallerIdentityResult/UserId",
            "GetCallerIdentityResult/Arn",
            "ResponseMetadata/RequestId",
        ],
    )?;
    Ok(Identity {
        account,
        user_id,
        arn,
        request_id,
    })
}

/// Reads AssumeRole's answer: the assumed role's ARN, and nothing of the credentials.
pub(super) fn attested(body: &[u8]) -> Result<Attested, AnswerFault> {
    let [arn, request_id] = read(
        body,
        "AssumeRoleResponse",
        [
            "AssumeRoleResult/AssumedRoleUser/Arn",
            "ResponseMetadata/RequestId",
        ],
    )?;
    Ok(Attested { arn, request_id })
}

/// Reads an error's code.
pub(super) fn error_code(body: &[u8]) -> Result<String, AnswerFault> {
    let [code] = read(body, "ErrorResponse", ["Error/Code"])?;
    // Codes are short words. Anything else could carry a secret into a log.
    let word = code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    word.then_some(code).ok_or(AnswerFault::Value("Error/Code"))
}

/// The text of each wanted path below the root.
fn read<const N: usize>(
    body: &[u8],
    root: &'static str,
    wanted: [&'static str; N],
) -> Result<[String; N], AnswerFault> {
    let text = std::str::from_utf8(body).map_err(|_| AnswerFault::Syntax)?;
    let mut walk = Walk {
        root,
        wanted,
        path: vec![],
        values: wanted.map(|_| String::new()),
        counts: [0; N],
        done: false,
    };
    let mut reader = Reader::from_str(text);
    reader.config_mut().enable_all_checks(true);
    let mut first = true;
    loop {
        let event = reader.read_event().map_err(|_| AnswerFault::Syntax)?;
        match event {
            Event::Decl(_) if first => {}
            Event::Start(start) => walk.open(&start)?,
            Event::Empty(start) => {
                walk.open(&start)?;
                walk.close();
            }
            Event::End(_) => walk.close(),
            Event::Text(text) => walk.text(&text)?,
            Event::GeneralRef(reference) => walk.reference(&reference)?,
            Event::Eof => break,
            Event::Decl(_) => return Err(AnswerFault::Unexpected("a second XML declaration")),
            Event::DocType(_) => return Err(AnswerFault::Unexpected("a document type")),
            Event::PI(_) => return Err(AnswerFault::Unexpected("a processing instruction")),
            Event::CData(_) => return Err(AnswerFault::Unexpected("CDATA")),
            Event::Comment(_) => return Err(AnswerFault::Unexpected("a comment")),
        }
        first = false;
    }
    walk.finish()
}

struct Walk<const N: usize> {
    root: &'static str,
    wanted: [&'static str; N],
    path: Vec<String>,
    values: [String; N],
    counts: [usize; N],
    done: bool,
}

impl<const N: usize> Walk<N> {
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), AnswerFault> {
        if self.done {
            return Err(AnswerFault::Unexpected("a second root element"));
        }
        if self.path.len() >= DEPTH_LIMIT {
            return Err(AnswerFault::Unexpected("elements in that depth"));
        }
        let name = start.name().into_inner().to_owned();
        let attributes = start
            .attributes()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| AnswerFault::Syntax)?;
        if self.path.is_empty() {
            let namespaced = matches!(
                attributes.as_slice(),
                [only] if only.key.as_ref() == "xmlns" && only.value == NAMESPACE
            );
            if name != self.root || !namespaced {
                return Err(AnswerFault::Root(self.root));
            }
        } else if !attributes.is_empty() {
            return Err(AnswerFault::Unexpected("an attribute"));
        }
        // Without prefixes and other `xmlns`, every element is in the root's namespace.
        if name.contains(':') {
            return Err(AnswerFault::Unexpected("a namespace prefix"));
        }
        self.path.push(name);
        let below = self.path.get(1..).unwrap_or_default().join("/");
        for (index, wanted) in self.wanted.iter().enumerate() {
            if *wanted == below {
                self.counts[index] += 1;
            } else if below
                .strip_prefix(wanted)
                .is_some_and(|rest| rest.starts_with('/'))
            {
                return Err(AnswerFault::Value(wanted));
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        self.path.pop();
        self.done = self.path.is_empty();
    }

    /// The wanted path that the walk is at.
    fn at(&self) -> Option<usize> {
        let below = self.path.get(1..)?.join("/");
        self.wanted.iter().position(|wanted| *wanted == below)
    }

    fn text(&mut self, text: &str) -> Result<(), AnswerFault> {
        if self.path.is_empty() {
            let blank = text.bytes().all(|byte| byte.is_ascii_whitespace());
            return if blank {
                Ok(())
            } else {
                Err(AnswerFault::Unexpected("text outside of the root element"))
            };
        }
        let Some(index) = self.at() else {
            return Ok(());
        };
        let value = &mut self.values[index];
        if value.len() + text.len() > VALUE_LIMIT {
            return Err(AnswerFault::Value(self.wanted[index]));
        }
        value.push_str(text);
        Ok(())
    }

    /// STS escapes characters in error messages, never in what is wanted here.
    fn reference(&self, name: &str) -> Result<(), AnswerFault> {
        let known = matches!(name, "amp" | "lt" | "gt" | "quot" | "apos") || name.starts_with('#');
        if self.path.is_empty() || !known {
            return Err(AnswerFault::Unexpected("an entity"));
        }
        match self.at() {
            Some(index) => Err(AnswerFault::Value(self.wanted[index])),
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<[String; N], AnswerFault> {
        if !self.done {
            return Err(AnswerFault::Syntax);
        }
        for (index, path) in self.wanted.into_iter().enumerate() {
            let (count, value) = (self.counts[index], &self.values[index]);
            if count != 1 {
                return Err(AnswerFault::Count { path, count });
            }
            // Values are single printable words; a space or a control character is none.
            if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(AnswerFault::Value(path));
            }
        }
        Ok(self.values)
    }
}

#[cfg(test)]
mod tests;
