//! The questions to AWS about one identity: what must be denied, what must be allowed.
//!
//! Each is one simulated request with all that a real one would carry. What it leaves out on
//! purpose (the MFA keys of long-term credentials, a tag) is listed, so that AWS's word that it
//! missed those is no doubt about the answer.

use super::question::Check;
use super::shape::{Shape, Tags};
use super::statement::{OWNER_TAG, SESSION_CONTEXT};

/// An instance that no policy names: what it may, every instance with its tags may.
const SOME_INSTANCE: &str = "i-0c0ffee0c0ffee000";
/// The same for a node that is no instance.
const SOME_NODE: &str = "mi-0c0ffee0c0ffee000";
/// Documents that Postern does not use: AWS's own that do more than its, and one of the account.
const OTHER_DOCUMENTS: [&str; 3] = [
    "AWS-StartPortForwardingSessionToSocket",
    "AWS-PasswordReset",
    "postern-check-some-document",
];
/// The random part of a session id.
const SESSION: &str = "0a1b2c3d4e5f60718";
/// Seconds: MFA that is surely young enough.
const FRESH: u64 = 60;
const PRESENT: &str = "aws:MultiFactorAuthPresent";
const AGE: &str = "aws:MultiFactorAuthAge";
const ACCESS_CHECK: &str = "ssm:SessionDocumentAccessCheck";
const START: &str = "ssm:StartSession";
/// Keys that no caller may set for all questions: each question is about their values.
const OWN_KEYS: [&str; 7] = [
    PRESENT,
    AGE,
    ACCESS_CHECK,
    "aws:userid",
    "aws:username",
    "aws:PrincipalArn",
    "aws:RequestedRegion",
];

/// One condition key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// One simulated request, or several of one situation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What for.
    pub check: Check,
    /// Each on each resource.
    pub actions: Vec<&'static str>,
    /// ARNs, or `*`.
    pub resources: Vec<String>,
    /// What the request carries.
    pub facts: Vec<Fact>,
    /// Prefixes of keys that it does not carry, on purpose.
    pub absent: Vec<String>,
}

/// Who is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// A user carries MFA in the session, a role never does.
    pub is_role: bool,
    /// Without path.
    pub name: String,
    /// As IAM has it.
    pub arn: String,
    /// `AIDA…`, `AROA…`.
    pub unique_id: String,
}

impl Subject {
    /// `aws:userid` of its sessions.
    fn user_id(&self) -> String {
        if self.is_role {
            format!("{}:postern-check", self.unique_id)
        } else {
            self.unique_id.clone()
        }
    }
}

/// What the questions are about.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// Tags, regions, ages.
    pub shape: &'a Shape,
    /// Instances by id, beside one that no policy names.
    pub instances: &'a [String],
    /// What every request carries besides.
    pub context: &'a [Fact],
    /// Whether the account is to have the policy for recorded targets.
    pub recorded: bool,
    /// Whether an attestation role is known.
    pub attestation: bool,
}

/// Whether a key may be given for all questions.
pub fn is_own_key(key: &str, shape: &Shape) -> bool {
    let tags = shape.tags.keys().chain(shape.recorded.keys());
    OWN_KEYS.iter().any(|own| own.eq_ignore_ascii_case(key))
        || key.eq_ignore_ascii_case(OWNER_TAG)
        || tags
            .flat_map(|tag| tag_keys(tag))
            .any(|own| own.eq_ignore_ascii_case(key))
}

/// Every question about one identity; `needs` adds what must be allowed.
pub fn probes(scope: &Scope<'_>, subject: &Subject, needs: bool) -> Vec<Probe> {
    let mut probes = Vec::new();
    for region in &scope.shape.regions {
        let asked = Asked {
            scope,
            subject,
            region,
        };
        probes.extend(asked.must_be_denied());
        // Whether anything can be started at all decides whether the rest matters.
        probes.push(asked.start());
        if needs {
            probes.extend(asked.must_be_allowed());
        }
    }
    probes
}

/// The same question as [`Check::Start`], as if a role session carried MFA: tells why it is denied.
pub fn start_as_if_with_mfa(scope: &Scope<'_>, subject: &Subject) -> Option<Probe> {
    let region = scope.shape.regions.first()?;
    let asked = Asked {
        scope,
        subject,
        region,
    };
    let mut probe = asked.start();
    probe.facts.push(fact(PRESENT, "true"));
    probe.facts.push(fact(AGE, FRESH.to_string()));
    Some(probe)
}

/// Questions about one identity in one region.
struct Asked<'a> {
    scope: &'a Scope<'a>,
    subject: &'a Subject,
    region: &'a str,
}

/// What a request says of MFA.
#[derive(Clone, Copy)]
enum Mfa {
    Absent,
    False,
    Age(u64),
}

impl Asked<'_> {
    fn must_be_denied(&self) -> Vec<Probe> {
        let shape = self.scope.shape;
        let mut probes = Vec::new();
        if !self.subject.is_role {
            // AWS leaves the keys out for long-term keys and says `false` of a session without.
            let situations = [
                (Check::LongTermKeys, Mfa::Absent),
                (Check::SessionWithoutMfa, Mfa::False),
                (Check::OldMfa, Mfa::Age(shape.max_age + 1)),
            ];
            for (check, mfa) in situations {
                probes.push(self.on_targets(check, mfa, &[&shape.tags], true));
            }
        }
        probes.push(self.on_targets(Check::OtherTargets, self.good(), &[], true));
        probes.push(self.on_targets(Check::DocumentCheck, self.good(), &[&shape.tags], false));
        probes.push(self.through(Check::OtherDocuments, &OTHER_DOCUMENTS));
        probes.push(self.sessions(
            Check::OthersSessions,
            "somebody-else",
            "AIDASOMEBODYELSE00000",
        ));
        if self.scope.recorded {
            for (key, values) in &shape.recorded {
                let one = Tags::from([(key.clone(), values.clone())]);
                let tags = [&shape.tags, &one];
                probes.push(self.on_targets(Check::Recorded, self.good(), &tags, true));
            }
        }
        probes
    }

    fn start(&self) -> Probe {
        self.on_targets(Check::Start, self.good(), &[&self.scope.shape.tags], true)
    }

    fn must_be_allowed(&self) -> Vec<Probe> {
        let shape = self.scope.shape;
        let name = match self.subject.is_role {
            true => "postern-check",
            false => &self.subject.name,
        };
        let mut probes = vec![
            self.through(Check::Documents, &shape.documents),
            self.sessions(Check::OwnSessions, name, &self.subject.user_id()),
            self.probe(
                Check::FindTargets,
                vec!["ssm:DescribeInstanceInformation"],
                vec!["*".to_owned()],
                self.good(),
            ),
            self.probe(
                Check::FindTargets,
                vec!["ssm:GetConnectionStatus"],
                self.targets(),
                self.good(),
            ),
        ];
        if self.scope.attestation && !self.subject.is_role {
            let role = vec![shape.attestation_role.clone()];
            probes.push(self.probe(Check::Attest, vec!["sts:AssumeRole"], role, self.good()));
        }
        if !shape.kms_keys.is_empty() {
            let actions = vec!["kms:GenerateDataKey"];
            let keys = shape.kms_keys.clone();
            let mut probe = self.probe(Check::Encrypt, actions, keys, self.good());
            probe
                .facts
                .push(fact(SESSION_CONTEXT, format!("{name}-{SESSION}")));
            probes.push(probe);
        }
        probes
    }

    /// The MFA of a good session: a user's is fresh, a role's is not told.
    fn good(&self) -> Mfa {
        if self.subject.is_role {
            Mfa::Absent
        } else {
            Mfa::Age(FRESH)
        }
    }

    fn on_targets(&self, check: Check, mfa: Mfa, tags: &[&Tags], access_check: bool) -> Probe {
        let mut probe = self.probe(check, vec![START], self.targets(), mfa);
        probe
            .facts
            .push(fact(ACCESS_CHECK, access_check.to_string()));
        for (key, values) in tags.iter().flat_map(|tags| tags.iter()) {
            for name in tag_keys(key) {
                probe
                    .facts
                    .push(fact(&name, values.first().map_or("", String::as_str)));
            }
        }
        probe
    }

    /// A document has no tag of a target.
    fn through<T: AsRef<str>>(&self, check: Check, documents: &[T]) -> Probe {
        let documents = documents
            .iter()
            .flat_map(|name| self.here(self.scope.shape.document(name.as_ref())))
            .collect();
        let mut probe = self.probe(check, vec![START], documents, self.good());
        probe.absent.push(ACCESS_CHECK.to_owned());
        probe
    }

    fn sessions(&self, check: Check, name: &str, owner: &str) -> Probe {
        let session = format!("session/{name}-{SESSION}");
        let sessions = self.here(self.scope.shape.everywhere("ssm", &session));
        let actions = vec!["ssm:ResumeSession", "ssm:TerminateSession"];
        let mut probe = self.probe(check, actions, sessions, self.good());
        probe.facts.push(fact(OWNER_TAG, owner));
        probe
    }

    fn targets(&self) -> Vec<String> {
        let shape = self.scope.shape;
        let mut targets = self.here(shape.everywhere("ec2", &format!("instance/{SOME_INSTANCE}")));
        targets
            .extend(self.here(shape.everywhere("ssm", &format!("managed-instance/{SOME_NODE}"))));
        for id in self.scope.instances {
            let (service, kind) = match id.starts_with("mi-") {
                true => ("ssm", "managed-instance"),
                false => ("ec2", "instance"),
            };
            targets.extend(self.here(shape.everywhere(service, &format!("{kind}/{id}"))));
        }
        targets
    }

    fn here(&self, arns: Vec<String>) -> Vec<String> {
        let region = format!(":{}:", self.region);
        arns.into_iter()
            .filter(|arn| arn.contains(&region))
            .collect()
    }

    fn probe(
        &self,
        check: Check,
        actions: Vec<&'static str>,
        resources: Vec<String>,
        mfa: Mfa,
    ) -> Probe {
        let mut facts = vec![
            fact("aws:PrincipalArn", &self.subject.arn),
            fact("aws:userid", self.subject.user_id()),
            fact("aws:RequestedRegion", self.region),
            fact("aws:SecureTransport", "true"),
            fact("aws:ViaAWSService", "false"),
        ];
        if !self.subject.is_role {
            facts.push(fact("aws:username", &self.subject.name));
        }
        match mfa {
            Mfa::Absent => {}
            Mfa::False => facts.push(fact(PRESENT, "false")),
            Mfa::Age(seconds) => {
                facts.push(fact(PRESENT, "true"));
                facts.push(fact(AGE, seconds.to_string()));
            }
        }
        facts.extend(self.scope.context.iter().cloned());
        let tags = [&self.scope.shape.tags, &self.scope.shape.recorded];
        let tags = tags.iter().flat_map(|tags| tags.keys());
        let mut absent: Vec<String> = tags.flat_map(|tag| tag_keys(tag)).collect();
        absent.extend([PRESENT, AGE, OWNER_TAG].map(str::to_owned));
        Probe {
            check,
            actions,
            resources,
            facts,
            absent,
        }
    }
}

/// StartSession knows a tag by two names (service authorization reference of Systems Manager).
fn tag_keys(tag: &str) -> [String; 2] {
    [
        format!("ssm:resourceTag/{tag}"),
        format!("aws:ResourceTag/{tag}"),
    ]
}

fn fact(key: &str, value: impl Into<String>) -> Fact {
    Fact {
        key: key.to_owned(),
        value: value.into(),
    }
}

#[cfg(test)]
mod tests;
