//! All targets at one moment, and how names find them.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_proto::names::{TargetId, TargetName};
use time::OffsetDateTime;

use super::Target;
use crate::aws::clean;

/// All targets at one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Sorted by name, then id.
    targets: Vec<Arc<Target>>,
    by_id: BTreeMap<TargetId, Arc<Target>>,
    /// Sources whose last answer is in use although a newer was asked for.
    stale: Vec<Stale>,
}

/// A source that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// `file`, or `ec2 REGION`.
    pub source: String,
    /// When it answered last; `None`: never.
    pub since: Option<OffsetDateTime>,
    /// Why.
    pub why: String,
}

/// A name does not mean one target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// It means none.
    #[error("no target is called `{}`", clean(.name))]
    Unknown {
        /// The name.
        name: String,
        /// Names that look like it, the nearest first.
        nearest: Vec<String>,
    },
    /// It means several.
    #[error("{} targets are called `{}`", candidates.len(), clean(.name))]
    Ambiguous {
        /// The name.
        name: String,
        /// Those that it means.
        candidates: Vec<Arc<Target>>,
    },
}

impl LookupError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown { nearest, .. } if !nearest.is_empty() => {
                format!("did you mean `{}`?", nearest.join("`, `"))
            }
            Self::Unknown { .. } => "postern ls".to_owned(),
            Self::Ambiguous { .. } => "name one by its id".to_owned(),
        }
    }

    /// `id name address` of each target that it may mean; at most 20.
    pub fn candidates(&self) -> Vec<String> {
        let Self::Ambiguous { candidates, .. } = self else {
            return Vec::new();
        };
        let line =
            |target: &Arc<Target>| format!("{} {} {}", target.id, target.name, target.address);
        candidates.iter().take(MAX_CANDIDATES).map(line).collect()
    }
}

impl Snapshot {
    /// Later targets win over earlier ones with the same id.
    pub(super) fn new(targets: impl IntoIterator<Item = Arc<Target>>, stale: Vec<Stale>) -> Self {
        let by_id: BTreeMap<_, _> = targets
            .into_iter()
            .map(|target| (target.id.clone(), target))
            .collect();
        let mut targets: Vec<_> = by_id.values().map(Arc::clone).collect();
        targets.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Self {
            targets,
            by_id,
            stale,
        }
    }

    /// All targets, sorted by name.
    pub fn targets(&self) -> &[Arc<Target>] {
        &self.targets
    }

    /// Sources whose last answer is in use although a newer was asked for.
    pub fn stale(&self) -> &[Stale] {
        &self.stale
    }

    /// A target by its key.
    pub fn get(&self, id: &TargetId) -> Option<Arc<Target>> {
        self.by_id.get(id).cloned()
    }

    /// Whether sshd listens at this port on any target.
    pub fn is_ssh_port(&self, port: u16) -> bool {
        self.targets.iter().any(|target| target.ssh_port == port)
    }

    /// The one target that a name means: an id, else a name, private address, DNS name, alias or
    /// `tag:KEY=VALUE`. Ids come first, since nobody can give their instance another's id; all
    /// else counts alike, so that a second host with the same name is noticed.
    pub fn lookup(&self, name: &TargetName) -> Result<Arc<Target>, LookupError> {
        let text = name.as_str();
        if let Some(target) = text.parse().ok().and_then(|id| self.get(&id)) {
            return Ok(target);
        }
        let tag = text
            .strip_prefix("tag:")
            .and_then(|tag| tag.split_once('='));
        let means = |target: &&Arc<Target>| match tag {
            Some((key, value)) => target.tags.get(key).is_some_and(|has| has == value),
            None => target.is_called(text),
        };
        let mut found: Vec<_> = self.targets.iter().filter(means).cloned().collect();
        match (found.len(), found.pop()) {
            (1, Some(target)) => Ok(target),
            (0, _) | (_, None) => Err(LookupError::Unknown {
                nearest: self.nearest(text),
                name: text.to_owned(),
            }),
            (_, Some(last)) => {
                found.push(last);
                Err(LookupError::Ambiguous {
                    name: text.to_owned(),
                    candidates: found,
                })
            }
        }
    }

    /// The targets that all filters leave: `tag:KEY` (has it), `tag:KEY=VALUE`, `platform=`,
    /// `account=`, `region=`, `vpc=` or `zone=` and a value, or a part of id, name, address or
    /// alias.
    pub fn list(&self, filters: &[String]) -> Vec<Arc<Target>> {
        let fits = |target: &&Arc<Target>| filters.iter().all(|filter| target.fits(filter));
        self.targets.iter().filter(fits).cloned().collect()
    }

    fn nearest(&self, text: &str) -> Vec<String> {
        let text: String = text
            .chars()
            .take(MAX_NAME)
            .collect::<String>()
            .to_lowercase();
        let mut near: Vec<(usize, &str)> = self
            .targets
            .iter()
            .flat_map(|target| {
                let aliases = target.aliases.iter().map(String::as_str);
                [target.id.as_str(), &target.name]
                    .into_iter()
                    .chain(aliases)
            })
            .filter(|name| name.chars().count().abs_diff(text.chars().count()) <= MAX_DISTANCE)
            .map(|name| {
                (
                    strsim::damerau_levenshtein(&text, &name.to_lowercase()),
                    name,
                )
            })
            .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, MAX_DISTANCE))
            .collect();
        near.sort_unstable();
        near.dedup_by_key(|(_, name)| *name);
        near.truncate(MAX_NEAREST);
        near.into_iter().map(|(_, name)| name.to_owned()).collect()
    }
}

impl Target {
    fn is_called(&self, text: &str) -> bool {
        let mut aliases = self.aliases.iter();
        self.name == text
            || same_host(&self.address, text)
            || aliases.any(|alias| same_host(alias, text))
    }

    fn fits(&self, filter: &str) -> bool {
        if let Some(tag) = filter.strip_prefix("tag:") {
            return match tag.split_once('=') {
                Some((key, value)) => self.tags.get(key).is_some_and(|has| has == value),
                None => self.tags.contains_key(tag),
            };
        }
        let is = |field: &Option<String>, value: &str| field.as_deref() == Some(value);
        match filter.split_once('=') {
            Some(("platform", value)) => self.platform == value,
            Some(("account", value)) => is(&self.account, value),
            Some(("region", value)) => is(&self.region, value),
            Some(("vpc", value)) => is(&self.vpc, value),
            Some(("zone", value)) => is(&self.zone, value),
            _ => {
                let aliases = self.aliases.iter().map(String::as_str);
                [self.id.as_str(), &self.name, &self.address]
                    .into_iter()
                    .chain(aliases)
                    .any(|name| name.contains(filter))
            }
        }
    }
}

/// DNS names are the same without regard to case and to a dot at the end, addresses in any
/// spelling.
fn same_host(a: &str, b: &str) -> bool {
    let bare = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let address = |name: &str| name.parse::<std::net::IpAddr>().ok();
    match (address(a), address(b)) {
        (Some(a), Some(b)) => a.to_canonical() == b.to_canonical(),
        _ => bare(a) == bare(b),
    }
}

/// Targets listed for an ambiguous name.
const MAX_CANDIDATES: usize = 20;
const MAX_NEAREST: usize = 3;
/// Edits between a wrong name and a suggested one.
const MAX_DISTANCE: usize = 4;
/// Characters of a name that are compared.
const MAX_NAME: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::TargetLogin;
    use super::*;

    fn target(id: &str, name: &str, address: &str) -> Arc<Target> {
        Arc::new(Target {
            id: id.parse().unwrap(),
            name: name.to_owned(),
            tags: [
                ("env".to_owned(), "prod".to_owned()),
                ("n".to_owned(), id.to_owned()),
            ]
            .into(),
            account: None,
            region: Some("eu-central-1".to_owned()),
            vpc: None,
            zone: None,
            platform: if name.starts_with("win") {
                "windows"
            } else {
                "linux"
            }
            .to_owned(),
            address: address.to_owned(),
            aliases: vec![format!("ip-{}.internal", address.replace('.', "-"))],
            ssh_port: if name == "db-1" { 2222 } else { 22 },
            login: TargetLogin::Certificate,
        })
    }

    fn snapshot() -> Snapshot {
        let targets = [
            target("i-0a", "web-1", "10.0.0.1"),
            target("i-0b", "web-2", "10.0.0.2"),
            target("i-0c", "twin", "10.0.0.3"),
            target("i-0d", "twin", "10.0.0.4"),
            target("i-0e", "db-1", "10.0.0.5"),
            target("i-0f", "win-1", "10.0.0.6"),
            // Somebody gave their instance the id of another as its name.
            target("i-10", "i-0a", "10.0.0.7"),
        ];
        Snapshot::new(targets, vec![])
    }

    fn find(name: &str) -> Result<String, LookupError> {
        let found = snapshot().lookup(&name.parse().unwrap())?;
        Ok(found.id.to_string())
    }

    #[test]
    fn a_target_is_found_by_each_of_its_names() {
        for (name, id) in [
            ("i-0b", "i-0b"),
            ("web-1", "i-0a"),
            ("10.0.0.2", "i-0b"),
            ("::ffff:10.0.0.2", "i-0b"),
            ("ip-10-0-0-2.internal", "i-0b"),
            ("IP-10-0-0-2.internal.", "i-0b"),
            ("tag:n=i-0c", "i-0c"),
            ("i-0d", "i-0d"),
        ] {
            assert_eq!(find(name).as_deref(), Ok(id), "{name}");
        }
    }

    #[test]
    fn an_id_is_not_stolen_by_a_name() {
        assert_eq!(find("i-0a").as_deref(), Ok("i-0a"));
    }

    #[test]
    fn two_matches_are_listed() {
        for name in ["twin", "tag:env=prod"] {
            let error = find(name).unwrap_err();
            assert!(matches!(error, LookupError::Ambiguous { .. }), "{error}");
        }
        let error = find("twin").unwrap_err();
        assert_eq!(error.to_string(), "2 targets are called `twin`");
        assert_eq!(
            error.candidates(),
            ["i-0c twin 10.0.0.3", "i-0d twin 10.0.0.4"]
        );
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let error = find("wbe-1").unwrap_err();
        assert_eq!(error.to_string(), "no target is called `wbe-1`");
        assert_eq!(error.hint(), "did you mean `web-1`?");
        let error = find("something-else").unwrap_err();
        assert_eq!(error.hint(), "postern ls");
        assert!(find("tag:env=none").is_err());
        assert!(find("tag:env").is_err());
        assert!(find("WEB-1").is_err());
    }

    #[test]
    fn filters_leave_what_fits_all_of_them() {
        let list = |filters: &[&str]| -> Vec<String> {
            let filters: Vec<_> = filters.iter().map(|f| (*f).to_owned()).collect();
            let found = snapshot().list(&filters);
            found.iter().map(|target| target.name.clone()).collect()
        };
        assert_eq!(list(&["web"]), ["web-1", "web-2"]);
        assert_eq!(list(&["web", "tag:n=i-0b"]), ["web-2"]);
        assert_eq!(list(&["platform=windows"]), ["win-1"]);
        assert_eq!(list(&["tag:n", "db"]), ["db-1"]);
        assert_eq!(list(&["vpc="]).len(), 0);
        assert_eq!(list(&["region=eu-central-1"]).len(), 7);
        assert_eq!(list(&["10.0.0.3"]), ["twin"]);
    }

    #[test]
    fn ssh_ports_are_those_of_all_targets() {
        let snapshot = snapshot();
        assert!(snapshot.is_ssh_port(22) && snapshot.is_ssh_port(2222));
        assert!(!snapshot.is_ssh_port(5432));
    }
}
