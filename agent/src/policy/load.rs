//! Policy files: read, checked strictly, or refused with file, line and what to do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aws_lc_rs::digest;
use cedar_policy::{
    ActionConstraint, Effect, Policy, PolicyId, PolicySet, ResourceConstraint, Schema,
    ValidationMode, Validator,
};
use miette::Diagnostic;

use super::condition::Parts;
use crate::files::{self, FileError};

/// A folder's policies, checked. Deciding with them is pure.
pub struct Policies {
    /// All of them.
    pub(super) all: PolicySet,
    /// The forbids, and the permits that speak of `context.host`: these decide about hosts behind
    /// a target.
    pub(super) behind: PolicySet,
    /// The forbids that name neither action nor target: these bar a principal altogether.
    pub(super) bars: PolicySet,
    /// Those of them that hold wherever the client is.
    pub(super) bars_anywhere: PolicySet,
    pub(super) rules: BTreeMap<String, Rule>,
    digest: String,
    warnings: Vec<String>,
}

/// One policy and what explanations need of it.
pub(super) struct Rule {
    pub(super) effect: Effect,
    pub(super) file: String,
    pub(super) line: usize,
    /// `@reason("…")`: told to the person whom a forbid stops.
    pub(super) reason: Option<String>,
    pub(super) parts: Parts,
}

/// Why policy files are not used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The folder or a file cannot be read, or not be trusted.
    #[error(transparent)]
    File(#[from] FileError),
    /// More than policies ever need.
    #[error("{} holds more than 1,000 policy files or 8 MiB of them", .0.display())]
    TooMany(PathBuf),
    /// What is wrong in the files; at most eight.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's name in the policy folder.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} line {}: {}", self.file, self.line, self.message)
    }
}

impl PolicyError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => Some(error.hint()),
            Self::TooMany(_) => Some("move away what is not in use".to_owned()),
            Self::Invalid(problems) => problems.iter().find_map(|problem| problem.hint.clone()),
        }
    }
}

impl Policies {
    /// Reads every `*.cedar` file of a folder, in the order of their names. Other files and
    /// folders are left alone. A folder without policies is valid and allows nothing.
    pub fn load(folder: &Path) -> Result<Self, PolicyError> {
        Self::from_files(read_folder(folder)?)
    }

    /// From names and texts.
    pub(super) fn from_files(mut files: Vec<(String, String)>) -> Result<Self, PolicyError> {
        files.sort();
        let mut problems = Vec::new();
        let mut policies = BTreeMap::new();
        for (file, text) in &files {
            read_policies(file, text, &mut policies, &mut problems);
        }
        // Policies that did not parse would only add noise from the ones that need them.
        refuse(&mut problems)?;
        let warnings = validate(&policies, &files, &mut problems);
        refuse(&mut problems)?;
        let mut loaded = Self {
            all: PolicySet::new(),
            behind: PolicySet::new(),
            bars: PolicySet::new(),
            bars_anywhere: PolicySet::new(),
            rules: BTreeMap::new(),
            digest: digest_of(&files),
            warnings,
        };
        for (id, placed) in policies {
            if let Err(message) = loaded.add(id, &placed) {
                problems.push(placed.problem(message, None));
            }
        }
        refuse(&mut problems)?;
        Ok(loaded)
    }

    fn add(&mut self, id: String, placed: &Placed) -> Result<(), String> {
        let policy = &placed.policy;
        let parts = Parts::of(policy)?;
        let insert = |set: &mut PolicySet| set.add(policy.clone()).map_err(|e| e.to_string());
        insert(&mut self.all)?;
        if policy.effect() == Effect::Forbid || parts.speaks_of_host {
            insert(&mut self.behind)?;
        }
        if policy.effect() == Effect::Forbid
            && policy.action_constraint() == ActionConstraint::Any
            && policy.resource_constraint() == ResourceConstraint::Any
        {
            insert(&mut self.bars)?;
            if !parts.speaks_of_source {
                insert(&mut self.bars_anywhere)?;
            }
        }
        let rule = Rule {
            effect: policy.effect(),
            file: placed.file.clone(),
            line: placed.line,
            reason: policy.annotation("reason").map(shown),
            parts,
        };
        self.rules.insert(id, rule);
        Ok(())
    }

    /// SHA-256 over names and contents of the files, hex: which policies decided.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Ids of all policies, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.rules.keys().map(String::as_str)
    }

    /// Whether there is none: then everything is denied.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is valid but looks like a mistake, one sentence each: for `check`.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// An annotation of a policy, such as `@record_input("true")`.
    pub fn annotation(&self, policy: &str, key: &str) -> Option<&str> {
        self.all.annotation(&PolicyId::new(policy), key)
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Policies({} of {})", self.rules.len(), self.digest)
    }
}

/// A policy and where it stands.
struct Placed {
    policy: Policy,
    file: String,
    line: usize,
}

impl Placed {
    fn problem(&self, message: String, hint: Option<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            line: self.line,
            message,
            hint,
        }
    }
}

fn read_folder(folder: &Path) -> Result<Vec<(String, String)>, PolicyError> {
    let mut files = Vec::new();
    let mut total = 0;
    for path in files::list(folder, "cedar")? {
        let text = files::read(&path, MAX_FILE)?;
        total += text.len();
        if files.len() == MAX_FILES || total > MAX_TOTAL {
            return Err(PolicyError::TooMany(folder.to_owned()));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.push((shown(&name), text));
    }
    Ok(files)
}

/// Parses one file; every policy gets its `@id` as Cedar's id.
fn read_policies(
    file: &str,
    text: &str,
    policies: &mut BTreeMap<String, Placed>,
    problems: &mut Vec<Problem>,
) {
    let set: PolicySet = match text.parse() {
        Ok(set) => set,
        Err(errors) => {
            problems.extend(errors.iter().map(|error| problem(file, text, error, None)));
            return;
        }
    };
    for template in set.templates() {
        problems.push(Problem {
            file: file.to_owned(),
            line: line_of(text, template.as_ref().loc().map(|at| at.start())),
            message: "a template has slots that nothing fills".to_owned(),
            hint: Some("write `principal == Principal::\"ACCOUNT/USER-ID\"` instead".to_owned()),
        });
    }
    for policy in set.policies() {
        let line = line_of(text, policy.as_ref().loc().map(|at| at.start()));
        let mut placed = Placed {
            policy: policy.clone(),
            file: file.to_owned(),
            line,
        };
        let id = match policy.annotation("id") {
            Some(id) if valid_id(id) => id.to_owned(),
            Some(_) => {
                problems.push(
                    placed.problem(
                        "this policy's @id is not 1 to 128 letters, digits, `-`, `_`, `.` or `/`"
                            .into(),
                        None,
                    ),
                );
                continue;
            }
            None => {
                problems.push(placed.problem(
                    "this policy has no @id, so no decision could name it".into(),
                    Some("write @id(\"what-it-is-for\") before it".into()),
                ));
                continue;
            }
        };
        if let Some(first) = policies.get(&id) {
            problems.push(placed.problem(
                format!(
                    "@id(\"{id}\") is taken by {} line {}",
                    first.file, first.line
                ),
                Some("give each policy an id of its own".into()),
            ));
            continue;
        }
        placed.policy = policy.new_id(PolicyId::new(&id));
        policies.insert(id, placed);
    }
}

/// Checks all policies strictly against the schema; returns what is merely suspicious.
fn validate(
    policies: &BTreeMap<String, Placed>,
    files: &[(String, String)],
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let texts: BTreeMap<_, _> = files.iter().map(|(name, text)| (name, text)).collect();
    let mut warnings = Vec::new();
    let validator = Validator::new(SCHEMA.clone());
    for (id, placed) in policies {
        let text = texts.get(&placed.file).map_or("", |text| text.as_str());
        let set = match PolicySet::from_policies([placed.policy.clone()]) {
            Ok(set) => set,
            Err(error) => {
                problems.push(placed.problem(error.to_string(), None));
                continue;
            }
        };
        let result = validator.validate(&set, ValidationMode::Strict);
        let errors = result.validation_errors();
        let found = errors.map(|error| problem(&placed.file, text, error, Some(placed.line)));
        problems.extend(once_each(found.collect()));
        for warning in result.validation_warnings() {
            warnings.push(format!(
                "{} line {}: {}",
                placed.file,
                placed.line,
                shown(&format!("policy `{id}`: {warning}"))
            ));
        }
    }
    warnings
}

/// Cedar tells one mistake again for every action that the policy speaks of, in any order: the
/// word for `connect` stands for all of them, since its context has most.
fn once_each(mut found: Vec<Problem>) -> Vec<Problem> {
    const ACTION: &str = " for Action::";
    let is_connect = |problem: &Problem| problem.message.contains(" for Action::\"connect\"");
    found.sort_by_key(|problem| (problem.line, !is_connect(problem), problem.message.clone()));
    let mut told = std::collections::BTreeSet::new();
    found.retain(|problem| {
        let mistake = problem.message.split(ACTION).next().unwrap_or_default();
        told.insert((problem.line, mistake.to_owned()))
    });
    found
}

/// What Cedar says, with the place it points at.
fn problem(file: &str, text: &str, error: &dyn Diagnostic, line: Option<usize>) -> Problem {
    let at = error
        .labels()
        .and_then(|mut labels| labels.next())
        .map(|label| label.offset());
    Problem {
        file: file.to_owned(),
        line: match at {
            Some(_) => line_of(text, at),
            None => line.unwrap_or(1),
        },
        message: shown(&error.to_string()),
        hint: error
            .help()
            .map(|help| shown(&help.to_string()))
            .or_else(|| {
                let rule = match line {
                    Some(_) => "policies may use only what the schema of policies declares",
                    None => "a policy reads `@id(\"…\") permit (principal, action, resource) when { … };`",
                };
                Some(rule.into())
            }),
    }
}

fn refuse(problems: &mut Vec<Problem>) -> Result<(), PolicyError> {
    if problems.is_empty() {
        return Ok(());
    }
    problems.truncate(MAX_PROBLEMS);
    Err(PolicyError::Invalid(std::mem::take(problems)))
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("; ")
}

fn line_of(text: &str, offset: Option<usize>) -> usize {
    let end = offset.unwrap_or(0).min(text.len());
    1 + text
        .as_bytes()
        .iter()
        .take(end)
        .filter(|&&b| b == b'\n')
        .count()
}

fn valid_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
}

/// Text of a file on its way to a log or a terminal: one line, bounded, no control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .take(512)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn digest_of(files: &[(String, String)]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for (name, text) in files {
        // Lengths first, so that no two lists of files have the same bytes.
        for part in [name, text] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
    }
    let mut hex = String::with_capacity(64);
    for byte in context.finish().as_ref() {
        // Writing into a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The schema as text: what policies may speak of.
pub const SCHEMA_TEXT: &str = include_str!("schema.cedarschema");

pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    SCHEMA_TEXT
        .parse()
        .expect("the schema is part of the program, and every test of this module parses it")
});

/// Bytes of one file.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of a folder.
const MAX_TOTAL: usize = 8 << 20;
const MAX_FILES: usize = 1_000;
/// How many problems one error lists.
pub(super) const MAX_PROBLEMS: usize = 8;
