//! Continuing a pipe on a new connection: what is said, and who may say it.
//!
//! ```text
//! client                                         agent
//!   Resume{attempt, received, proof} ──────────▶  old connection fenced
//!   ◀──────────────────────── Resumed{received}   or Denied
//!   what the other has not got, again ◀────────▶
//! ```
//!
//! The proof is an HMAC under a key that came out of the secret in the pipe's `Granted`; neither
//! travels again. With every resume the key moves on to the next, which the connection's TLS
//! exporter goes into. An answer may be lost, so the agent takes the current key and the next
//! until a frame of a client that has the next one arrives.

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::names::SessionId;

/// Asks to continue a pipe: the first frame of a connection, in the place of `Open`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// The session.
    pub session: SessionId,
    /// The pipe's number in it.
    pub pipe: u32,
    /// Counts the client's attempts from 1: one that was overtaken by a later one is void.
    pub attempt: u64,
    /// Bytes of data that arrived from the agent.
    pub received: u64,
    /// Hex of the HMAC.
    pub proof: String,
}

/// The agent's yes: the old connection is fenced, the pipe goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resumed {
    /// Bytes of data that arrived from the client.
    pub received: u64,
}

/// Why a `Resume` is not taken. The client is not told which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ResumeFault {
    /// The HMAC is under another key, or of another connection.
    #[error("wrong proof")]
    Proof,
    /// An attempt that was made before, or that a later one overtook.
    #[error("attempt {attempt} after attempt {last}")]
    Attempt {
        /// The attempt.
        attempt: u64,
        /// The last one that was taken.
        last: u64,
    },
}

/// A key of the chain; wiped, and printed by nothing.
struct Key(Zeroizing<[u8; 32]>);

impl Key {
    fn first(secret: &[u8; 32], session: SessionId, pipe: u32) -> Self {
        let parts: [&[u8]; 3] = [
            b"postern-resume-v1",
            &session.to_bytes(),
            &pipe.to_be_bytes(),
        ];
        Self(mac(secret, &parts))
    }

    fn next(&self, exporter: &[u8; 32]) -> Self {
        Self(mac(&self.0, &[b"postern-resume-next-v1", exporter]))
    }

    fn proof(&self, exporter: &[u8; 32], resume: &Resume) -> String {
        let mut proof = mac(
            &self.0,
            &[
                b"postern-resume-proof-v1",
                exporter,
                &resume.session.to_bytes(),
                &resume.pipe.to_be_bytes(),
                &resume.attempt.to_be_bytes(),
                &resume.received.to_be_bytes(),
            ],
        );
        let text = hex::encode(*proof);
        proof.zeroize();
        text
    }

    fn proves(&self, exporter: &[u8; 32], resume: &Resume) -> bool {
        let proof = self.proof(exporter, resume);
        proof.as_bytes().ct_eq(resume.proof.as_bytes()).into()
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut context = hmac::Context::with_key(&key);
    for part in parts {
        context.update(part);
    }
    let mut bytes = Zeroizing::new([0; 32]);
    bytes.copy_from_slice(context.sign().as_ref());
    bytes
}

/// The client's end of the chain of keys of one pipe.
pub struct Claim {
    session: SessionId,
    pipe: u32,
    key: Key,
    attempt: u64,
}

impl Claim {
    /// From the secret in the pipe's `Granted`.
    pub fn new(secret: &[u8; 32], session: SessionId, pipe: u32) -> Self {
        Self {
            session,
            pipe,
            key: Key::first(secret, session, pipe),
            attempt: 0,
        }
    }

    /// The next attempt, on the connection of `exporter`.
    pub fn resume(&mut self, exporter: &[u8; 32], received: u64) -> Resume {
        self.attempt += 1;
        let mut resume = Resume {
            session: self.session,
            pipe: self.pipe,
            attempt: self.attempt,
            received,
            proof: String::new(),
        };
        resume.proof = self.key.proof(exporter, &resume);
        resume
    }

    /// `Resumed` arrived on the connection of `exporter`: the next key counts. Say something on
    /// the connection soon, so that the agent forgets the old one.
    pub fn accepted(&mut self, exporter: &[u8; 32]) {
        self.key = self.key.next(exporter);
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim({}/{})", self.session, self.pipe)
    }
}

/// The agent's end of the chain of keys of one pipe.
pub struct Custody {
    current: Key,
    /// Of the last `Resume` that was taken, until [`Custody::confirm`].
    next: Option<Key>,
    attempt: u64,
}

impl Custody {
    /// From the secret in the pipe's `Granted`.
    pub fn new(secret: &[u8; 32], session: SessionId, pipe: u32) -> Self {
        Self {
            current: Key::first(secret, session, pipe),
            next: None,
            attempt: 0,
        }
    }

    /// Takes a `Resume` that arrived on the connection of `exporter`, once. The caller has found
    /// this custody by the session and pipe in it.
    pub fn take(&mut self, resume: &Resume, exporter: &[u8; 32]) -> Result<(), ResumeFault> {
        let by_next = self
            .next
            .as_ref()
            .is_some_and(|next| next.proves(exporter, resume));
        if !by_next && !self.current.proves(exporter, resume) {
            return Err(ResumeFault::Proof);
        }
        if resume.attempt <= self.attempt {
            return Err(ResumeFault::Attempt {
                attempt: resume.attempt,
                last: self.attempt,
            });
        }
        if by_next && let Some(next) = self.next.take() {
            self.current = next;
        }
        self.attempt = resume.attempt;
        self.next = Some(self.current.next(exporter));
        Ok(())
    }

    /// A frame arrived on the connection of this attempt, so its client has the next key.
    pub fn confirm(&mut self, attempt: u64) {
        if attempt == self.attempt
            && let Some(next) = self.next.take()
        {
            self.current = next;
        }
    }
}

impl std::fmt::Debug for Custody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Custody(attempt {})", self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 32] = [1; 32];
    const B: [u8; 32] = [2; 32];
    const C: [u8; 32] = [3; 32];

    fn pair() -> (Claim, Custody) {
        let session = SessionId::from_parts(1, 2);
        (
            Claim::new(&[7; 32], session, 3),
            Custody::new(&[7; 32], session, 3),
        )
    }

    #[test]
    fn a_resume_is_taken_once_and_on_its_own_connection_alone() {
        let (mut claim, mut custody) = pair();
        let resume = claim.resume(&A, 5);
        assert_eq!(custody.take(&resume, &B), Err(ResumeFault::Proof));
        assert_eq!(custody.take(&resume, &A), Ok(()));
        assert_eq!(
            custody.take(&resume, &A),
            Err(ResumeFault::Attempt {
                attempt: 1,
                last: 1
            })
        );
    }

    #[test]
    fn nothing_in_it_can_be_changed() {
        let (mut claim, mut custody) = pair();
        let good = claim.resume(&A, 5);
        let mut cases = vec![good.clone(); 5];
        cases[0].received = 6;
        cases[1].attempt = 2;
        cases[2].pipe = 4;
        cases[3].session = SessionId::from_parts(1, 3);
        cases[4].proof = good.proof.to_uppercase();
        for case in cases {
            assert_eq!(custody.take(&case, &A), Err(ResumeFault::Proof), "{case:?}");
        }
        assert_eq!(custody.take(&good, &A), Ok(()));
    }

    #[test]
    fn an_attempt_that_a_later_one_overtook_is_void() {
        let (mut claim, mut custody) = pair();
        let (early, late) = (claim.resume(&A, 0), claim.resume(&B, 0));
        assert_eq!(custody.take(&late, &B), Ok(()));
        assert_eq!(
            custody.take(&early, &A),
            Err(ResumeFault::Attempt {
                attempt: 1,
                last: 2
            })
        );
    }

    #[test]
    fn a_lost_answer_locks_nobody_out() {
        let (mut claim, mut custody) = pair();
        custody.take(&claim.resume(&A, 0), &A).unwrap();
        // The answer was lost: the client still has the old key.
        custody.take(&claim.resume(&B, 0), &B).unwrap();
        claim.accepted(&B);
        // It arrived, but nothing that the client said after it did.
        custody.take(&claim.resume(&C, 0), &C).unwrap();
        claim.accepted(&C);
        custody.confirm(3);
        custody.take(&claim.resume(&A, 0), &A).unwrap();
    }

    #[test]
    fn an_old_key_dies_with_the_first_frame_under_the_next() {
        let (mut claim, mut custody) = pair();
        let (mut thief, _) = pair();
        custody.take(&claim.resume(&A, 0), &A).unwrap();
        claim.accepted(&A);
        custody.confirm(1);
        thief.attempt = 10;
        assert_eq!(
            custody.take(&thief.resume(&B, 0), &B),
            Err(ResumeFault::Proof)
        );
        // A late frame of an attempt that is over confirms nothing.
        custody.take(&claim.resume(&B, 0), &B).unwrap();
        custody.confirm(1);
        custody.take(&claim.resume(&C, 0), &C).unwrap();
    }

    #[test]
    fn the_wire_form_is_stable() {
        let (mut claim, _) = pair();
        let resume = claim.resume(&A, 5);
        let text = serde_json::to_string(&resume).unwrap();
        let expected = format!(
            r#"{{"session":"{}","pipe":3,"attempt":1,"received":5,"proof":"{}"}}"#,
            resume.session, resume.proof
        );
        assert_eq!(text, expected);
        assert_eq!(resume.proof.len(), 64);
        assert_eq!(
            serde_json::to_string(&Resumed { received: 9 }).unwrap(),
            r#"{"received":9}"#
        );
    }
}
