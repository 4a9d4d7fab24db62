//! What a version number of the peer means: nothing else on the wire tells these things.

use std::str::FromStr;

/// A version of four numbers. Anything else counts as old, as with the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u32; 4]);

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers = [0; 4];
        let mut parts = text.split('.');
        for number in &mut numbers {
            let part = parts.next().ok_or(())?;
            let digits = part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit());
            *number = digits.then(|| part.parse().ok()).flatten().ok_or(())?;
        }
        parts.next().is_none().then_some(Self(numbers)).ok_or(())
    }
}

/// How the bytes of a port session are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortMode {
    /// One connection for the life of the session (a `Port` session without a `type`).
    Stream,
    /// One connection at a time; [`Flag::DisconnectToPort`](super::payload::Flag) ends one.
    Basic,
    /// Many connections: the bytes are [`super::smux`].
    Multiplexed {
        /// Whether both sides send keepalives every 10 s and give up after 30 s without input.
        keepalive: bool,
    },
}

/// The client's answers about an SSM Agent's version (plugin `version/versiongate.go` and the
/// constants in its `config/config.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentFeatures(Option<Version>);

impl AgentFeatures {
    /// From the `AgentVersion` of the handshake; `None` when there was none.
    pub fn new(version: Option<&str>) -> Self {
        Self(version.and_then(|text| text.parse().ok()))
    }

    /// Port forwarding carries many connections.
    pub fn multiplexes(self) -> bool {
        self.0 > Some(Version([3, 0, 196, 0]))
    }

    /// No keepalives inside the multiplexer.
    pub fn is_without_keepalive(self) -> bool {
        self.0 > Some(Version([3, 1, 1511, 0]))
    }

    /// The `TerminateSession` flag ends the session; else only the API call does.
    pub fn understands_terminate(self) -> bool {
        self.0 > Some(Version([2, 3, 722, 0]))
    }
}

/// The SSM Agent's answers about a client's version (SSM Agent `session/plugins/port/port.go`,
/// `session/plugins/nonInteractiveCommands`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFeatures(Option<Version>);

impl ClientFeatures {
    /// From the `ClientVersion` of the handshake.
    pub fn new(version: &str) -> Self {
        Self(version.parse().ok())
    }

    /// Port forwarding carries many connections.
    pub fn multiplexes(self) -> bool {
        self.0 >= Some(Version([1, 1, 70, 0]))
    }

    /// No keepalives inside the multiplexer.
    pub fn is_without_keepalive(self) -> bool {
        self.0 > Some(Version([1, 2, 331, 0]))
    }

    /// Standard error and exit code arrive as payload types of their own.
    pub fn separates_stderr(self) -> bool {
        self.0 > Some(Version([1, 2, 295, 0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_one_by_one() {
        let at = |text| AgentFeatures::new(Some(text));
        assert!(!at("3.0.196.0").multiplexes());
        assert!(at("3.0.196.1").multiplexes());
        assert!(at("3.0.1000.0").multiplexes());
        assert!(!at("2.99.999.0").multiplexes());
        assert!(!at("3.1.1511.0").is_without_keepalive());
        assert!(at("3.3.0.0").is_without_keepalive());
        assert!(at("2.3.722.1").understands_terminate());
        assert!(!ClientFeatures::new("1.1.69.9").multiplexes());
        assert!(ClientFeatures::new("1.1.70.0").multiplexes());
        assert!(!ClientFeatures::new("1.2.331.0").is_without_keepalive());
        assert!(!ClientFeatures::new("1.2.295.0").separates_stderr());
    }

    #[test]
    fn what_is_not_four_numbers_is_old() {
        for text in [
            "",
            "3",
            "3.3.0",
            "3.3.0.0.0",
            "3.3.0.x",
            "3.3.0.+1",
            "3.3.0.4294967296",
        ] {
            assert!(
                !AgentFeatures::new(Some(text)).understands_terminate(),
                "{text}"
            );
        }
        assert!(!AgentFeatures::new(None).multiplexes());
    }
}
