//! The way to a connection: ResumeSession for a token, then the session's own URL again.
//!
//! SSM-PROTOCOL.md section 8: the URL in the answer is ignored, no token in it means that the
//! session is over. Where the plugin gives up after six attempts, this goes on for as long as the
//! session can live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use postern_proto::ssm::payload::SecretText;
use tokio::time::sleep;

use crate::pipe::outage::{Lost, Outage, Outages};

use super::api::Ssm;
use super::error::SsmError;
use super::socket::Socket;

/// Between two attempts: the first and the longest, before jitter.
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// The longest behind a connection that carried something.
const LONGEST_USEFUL: Duration = Duration::from_secs(1);
/// A connection that lived for so long was a good one; one that carried something, sooner.
const STABLE: Duration = Duration::from_secs(10);
const STABLE_USEFUL: Duration = Duration::from_secs(1);
/// For the first connection of a session.
const PATIENCE: Duration = Duration::from_secs(30);
/// SSM's idle timeout is 60 minutes at most: what was away for longer is gone.
const LIFETIME: Duration = Duration::from_secs(61 * 60);

/// A connection, and the token that its first message carries.
pub(super) struct Back {
    pub(super) socket: Socket,
    pub(super) token: SecretText,
}

/// Finds connections for one session.
pub(super) struct WayBack {
    ssm: Arc<Ssm>,
    session: String,
    url: String,
    outages: Outages,
    delay: Duration,
    connected: Instant,
}

/// A search that goes on.
pub(super) struct Search {
    pub(super) found: BoxFuture<'static, Result<Back, SsmError>>,
    // Over when dropped.
    _outage: Option<Outage>,
}

impl WayBack {
    pub(super) fn new(ssm: Arc<Ssm>, session: String, url: String) -> Self {
        Self {
            ssm,
            session,
            url,
            outages: Outages::new(),
            delay: Duration::ZERO,
            connected: Instant::now(),
        }
    }

    pub(super) fn outages(&self) -> &Outages {
        &self.outages
    }

    /// The first connection, with the token of StartSession.
    pub(super) fn first(&self, token: SecretText) -> Search {
        let attempts = self.attempts();
        Search {
            found: Box::pin(async move {
                match attempts.connect(token).await {
                    Ok(back) => Ok(back),
                    Err(
                        error @ SsmError::Stream {
                            is_answer: true, ..
                        },
                    ) => Err(error),
                    Err(_) => attempts.go_on(BACKOFF, PATIENCE).await,
                }
            }),
            _outage: None,
        }
    }

    /// A connection came about.
    pub(super) fn connected(&mut self) {
        self.connected = Instant::now();
    }

    /// Another connection, since the last one, on which something was `heard` last, was lost.
    pub(super) fn again(&mut self, heard: Instant, why: &str) -> Search {
        // One that is closed at once must not make us ask AWS in a circle. A network that cuts
        // again and again, and carries something in between, must not make us wait for long.
        let (stable, longest) = if heard > self.connected {
            (STABLE_USEFUL, LONGEST_USEFUL)
        } else {
            (STABLE, LONGEST)
        };
        self.delay = if self.connected.elapsed() < stable {
            (self.delay * 2).clamp(BACKOFF, longest)
        } else {
            Duration::ZERO
        };
        let outage = self.outages.begin(Lost::Network, heard);
        outage.explain(why);
        let (mut attempts, delay) = (self.attempts(), self.delay);
        attempts.explain = Some(self.outages.clone());
        Search {
            found: Box::pin(async move { attempts.go_on(delay, LIFETIME).await }),
            _outage: Some(outage),
        }
    }

    fn attempts(&self) -> Attempts {
        Attempts {
            ssm: Arc::clone(&self.ssm),
            session: self.session.clone(),
            url: self.url.clone(),
            explain: None,
        }
    }
}

/// What one search needs.
struct Attempts {
    ssm: Arc<Ssm>,
    session: String,
    url: String,
    explain: Option<Outages>,
}

impl Attempts {
    /// Tries after `delay` and then again and again, for as long as `patience`.
    async fn go_on(self, mut delay: Duration, patience: Duration) -> Result<Back, SsmError> {
        let begun = Instant::now();
        loop {
            if !delay.is_zero() {
                sleep(jittered(delay)).await;
            }
            let error = match self.attempt().await {
                Ok(back) => return Ok(back),
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => error,
            };
            tracing::debug!(session = %self.session, %error, "no connection yet");
            if begun.elapsed() >= patience {
                return Err(match self.explain {
                    None => error,
                    Some(_) => SsmError::Lost {
                        minutes: begun.elapsed().as_secs() / 60,
                        cause: error.to_string(),
                    },
                });
            }
            if let Some(outages) = &self.explain {
                outages.explain(&error.to_string());
            }
            delay = (delay * 2).clamp(BACKOFF, LONGEST);
        }
    }

    async fn attempt(&self) -> Result<Back, SsmError> {
        match self.ssm.resume(&self.session).await? {
            Some(token) => self.connect(token).await,
            None => Err(SsmError::Over),
        }
    }

    async fn connect(&self, token: SecretText) -> Result<Back, SsmError> {
        let socket = Socket::open(&self.url, self.ssm.tls(), self.ssm.proxies()).await?;
        Ok(Back { socket, token })
    }
}

/// Whether trying again cannot help. A session that is over at AWS, or that AWS does not let us
/// have; but a login may come, and networks heal.
fn is_final(error: &SsmError) -> bool {
    match error {
        SsmError::Over => true,
        SsmError::Refused { code, .. } => !is_too_often(code),
        _ => false,
    }
}

/// SSM's words for "slower".
fn is_too_often(code: &str) -> bool {
    matches!(
        code,
        "ThrottlingException" | "Throttling" | "TooManyRequestsException" | "RequestLimitExceeded"
    )
}

/// Half of it at least: clients that lost the same network do not come back as one.
fn jittered(delay: Duration) -> Duration {
    let mut random = [0];
    let part = match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(random[0]) / 255.0,
        Err(_) => 1.0,
    };
    delay.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_heal_and_refusals_do_not() {
        let refused = |code: &str| SsmError::Refused {
            service: "SSM",
            action: "ResumeSession",
            target: None,
            code: code.to_owned(),
            message: String::new(),
        };
        assert!(is_final(&refused("AccessDeniedException")));
        assert!(is_final(&refused("DoesNotExistException")));
        assert!(is_final(&SsmError::Over));
        assert!(!is_final(&refused("ThrottlingException")));
        assert!(!is_final(&SsmError::Expired("default".to_owned())));
        assert!(!is_final(&SsmError::Stream {
            host: "x".to_owned(),
            cause: "y".to_owned(),
            hint: None,
            is_answer: true,
        }));
    }
}
