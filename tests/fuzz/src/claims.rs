//! What the agent's log takes of clients' claims, as a sequence of operations.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use postern_proto::audit::event::{Access, Actor, Claim, Event, Fact, RecordingDigest, SsmSession};
use postern_proto::gateway::message::CloseReason;
use postern_proto::names::{Assurance, Principal, SessionId};

use super::claims::{ClaimError, Claims, QUOTA, Turn};
use super::event::{self, now_ms};

const MIB: u64 = 1024 * 1024;

/// Logs that one principal may have.
const LOGS: usize = 64;

/// The log, and what is being written to it.
#[derive(Default)]
struct World {
    claims: Arc<Claims>,
    /// What it holds, with its bytes.
    log: Vec<(Event, u64)>,
    writing: Vec<(Event, u64, Turn)>,
    /// Logs that somebody tried.
    tried: HashSet<(String, String)>,
}

/// Requests of two principals from many machines, which are written, or not, in any order; and
/// restarts of the agent, which know what the log says.
pub(crate) fn claims(input: &[u8]) {
    let mut world = World::default();
    event::set(1);
    for operation in input.chunks_exact(4) {
        let &[kind, a, b, c] = operation else { return };
        match kind % 8 {
            0..=3 => world.ask(kind & 4 == 4, a, b, c),
            4 | 5 => {
                if let Some((event, bytes, turn)) = world.take(a) {
                    world.write(event, bytes, turn);
                }
            }
            // It could not be written.
            6 => drop(world.take(a)),
            // A write takes seconds, not hours.
            _ if a < 200 && world.writing.is_empty() => {
                event::set(now_ms() + i64::from(a) * 600_000);
            }
            _ if a < 200 => {}
            _ => {
                let claims = Arc::new(Claims::default());
                for (event, bytes) in &world.log {
                    claims.follow(event, *bytes);
                }
                world.writing.clear();
                world.claims = claims;
            }
        }
    }
}

impl World {
    fn take(&mut self, at: u8) -> Option<(Event, u64, Turn)> {
        let at = usize::from(at) % self.writing.len().max(1);
        (at < self.writing.len()).then(|| self.writing.remove(at))
    }

    /// What was admitted is still due when it is written.
    fn write(&mut self, event: Event, bytes: u64, turn: Turn) {
        let claim = claim_of(&event);
        let (owner, session) = (of(&event), event.session.expect("of a session"));
        assert!(self.is_due(&owner, session, &claim.fact), "{event:?}");
        assert!(
            claim.entry >= self.next(&owner, claim.log.as_str()),
            "twice"
        );
        self.claims.follow(&event, bytes);
        drop(turn);
        for digest in claim.fact.recordings() {
            let name = digest.name.parse().expect("a name");
            let expected = self.claims.expected(name).expect("just stated");
            assert_eq!(expected.owner, owner);
        }
        self.log.push((event, bytes));
    }

    fn ask(&mut self, agents: bool, a: u8, b: u8, c: u8) {
        let actor = actor(a >> 7);
        let owner = actor.principal.key();
        let log = format!("client-{}", a & 0x7f);
        let session = match agents {
            true => SessionId::of_agent(1, (b & 7).into()),
            false => SessionId::of_client(1, (b & 7).into()),
        };
        let next = self.next(&owner, &log);
        let claim = Claim {
            log: log.parse().expect("a name"),
            entry: (next + u64::from(c & 3)).saturating_sub(1),
            leaf_hash: String::new(),
            time_ms: 0,
            fact: Box::new(fact(b >> 3, session)),
            sealed: None,
        };
        let bytes = u64::from(c >> 2) * MIB;
        let answer = self.claims.admit(&owner, session, &claim, bytes);
        let event = Event {
            time_ms: now_ms(),
            session: Some(session),
            actor: Some(actor),
            source: None,
            target: None,
            fact: Fact::Claimed(claim.clone()),
        };
        self.check(&owner, &event, &claim, bytes, answer.as_ref());
        if let Ok(Some(turn)) = answer {
            self.tried.insert((owner, log));
            self.writing.push((event, bytes, turn));
        }
    }

    /// The answer is what the log alone would say.
    fn check(
        &self,
        owner: &str,
        event: &Event,
        claim: &Claim,
        bytes: u64,
        answer: Result<&Option<Turn>, &ClaimError>,
    ) {
        let session = event.session.expect("of a session");
        let mut writing = self.writing.iter().map(|(event, ..)| event);
        let busy = writing.any(|other| {
            let same_log = claim_of(other).log == claim.log && of(other) == owner;
            same_log || other.session == Some(session)
        });
        let is_next = claim.entry >= self.next(owner, claim.log.as_str());
        let is_due = self.is_due(owner, session, &claim.fact);
        match answer {
            Ok(Some(_)) => {
                assert!(session.is_of_client() && is_next && is_due);
                // Days begin with what comes first: two of them touch every other.
                assert!(self.used(owner) + bytes <= 2 * QUOTA);
            }
            Ok(None) => assert!(!is_next),
            Err(ClaimError::Busy) => assert!(busy),
            Err(ClaimError::OfAgent(_)) => assert!(!session.is_of_client()),
            Err(ClaimError::OfAnother(_)) => {
                assert!(self.state(session).is_some_and(|(of, _)| of != owner));
            }
            Err(ClaimError::NotOpen(_)) => assert!(!is_due),
            Err(ClaimError::Limit(_)) => {
                let logs = self.tried.iter().filter(|(of, _)| of == owner).count();
                assert!(logs >= LOGS || self.used(owner) + bytes > QUOTA);
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A session begins once, goes on by its owner, and ends once.
    fn is_due(&self, owner: &str, session: SessionId, fact: &Fact) -> bool {
        let begins = matches!(fact, Fact::SessionClaimed { .. });
        match self.state(session) {
            None => begins,
            Some((of, ended)) => of == owner && !ended && !begins,
        }
    }

    /// Who claimed a session, and whether it ended.
    fn state(&self, session: SessionId) -> Option<(String, bool)> {
        let mut owners = HashMap::new();
        for (event, _) in self.log.iter().filter(|(e, _)| e.session == Some(session)) {
            let ends = matches!(*claim_of(event).fact, Fact::SessionClosed { .. });
            *owners.entry(of(event)).or_insert(false) |= ends;
        }
        assert!(owners.len() < 2, "two claimed one session");
        owners.into_iter().next()
    }

    /// The entry of a log that may come next.
    fn next(&self, owner: &str, log: &str) -> u64 {
        let of_owner = self.log.iter().filter(|(event, _)| of(event) == owner);
        let of_log = of_owner
            .map(|(event, _)| claim_of(event))
            .filter(|claim| claim.log.as_str() == log);
        of_log.map(|claim| claim.entry + 1).max().unwrap_or(0)
    }

    /// Bytes of a principal's that the log took in the last day, or is to take.
    fn used(&self, owner: &str) -> u64 {
        let since = now_ms() - 24 * 3_600_000;
        let writing = self.writing.iter().map(|(event, bytes, _)| (event, bytes));
        let all = self.log.iter().map(|(event, bytes)| (event, bytes));
        all.chain(writing)
            .filter(|(event, _)| of(event) == owner && event.time_ms > since)
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

fn of(event: &Event) -> String {
    let actor = event.actor.as_ref().expect("somebody claims");
    actor.principal.key()
}

fn claim_of(event: &Event) -> &Claim {
    match &event.fact {
        Fact::Claimed(claim) => claim,
        _ => unreachable!("all are claims"),
    }
}

fn actor(n: u8) -> Actor {
    Actor {
        principal: Principal {
            account: "111122223333".parse().expect("an account"),
            user_id: format!("AIDAAAAAAAAAAAAAAAA{n}").parse().expect("an id"),
            arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
        },
        assurance: Assurance::AwsMfa,
        mfa_not_before: 0,
        certificate: String::new(),
        aws_request_ids: vec![],
    }
}

fn fact(n: u8, session: SessionId) -> Fact {
    let recording = |number: u8| RecordingDigest {
        name: format!("{session}-{number}"),
        length: 1,
        sha256: String::new(),
        complete: true,
    };
    let ssm = SsmSession {
        id: "alice-1".to_owned(),
        document: "AWS-StartSSHSession".to_owned(),
        region: "eu-west-1".to_owned(),
        reason: None,
        request_id: None,
    };
    match n % 4 {
        0 => Fact::SessionClaimed {
            access: Access::Shell,
            ssm,
        },
        1 => Fact::SsmSessionOpened { ssm },
        2 => Fact::RecordingProgressed {
            recording: recording(n),
        },
        _ => Fact::SessionClosed {
            reason: CloseReason::Done,
            message: None,
            exit_status: None,
            up: 0,
            down: 0,
            duration_ms: 0,
            recordings: vec![recording(n)],
        },
    }
}
