//! What can be changed about the service and the SSM Agents while they run.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::session::{Cut, Side};

/// What happens to messages for a side that is away. AWS does not say, so clients must bear both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retention {
    /// They wait for its return.
    Keep,
    /// They are gone.
    Drop,
}

/// What a direction does to frames. Percentages of 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Frames that vanish.
    pub drop: f64,
    /// Frames that come twice.
    pub double: f64,
    /// Frames that come later than those behind them.
    pub delay: f64,
    /// By how much.
    #[serde(with = "seconds")]
    pub delay_for: Duration,
}

/// Connections that are cut again and again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CutEvery {
    /// Whose.
    pub side: Side,
    /// How.
    pub how: Cut,
    /// How long each lives.
    #[serde(with = "seconds")]
    pub every: Duration,
}

/// Everything that can be changed. As JSON, durations are seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Knobs {
    /// What happens to messages for a side that is away.
    pub retention: Retention,
    /// Whether sides are told that the other is away or back.
    pub publication: bool,
    /// After how long the service closes a data channel (1000); the session lives on.
    #[serde(with = "maybe_seconds")]
    pub data_channel_life: Option<Duration>,
    /// How long a token opens data channels.
    #[serde(with = "seconds")]
    pub token_life: Duration,
    /// Sessions that one caller may have at once.
    pub session_limit: Option<usize>,
    /// The KMS key (id, ARN or alias) of the account's preferences: it encrypts sessions whose
    /// document names none.
    pub session_key: Option<String>,
    /// Frames from clients to SSM Agents.
    pub to_agent: Noise,
    /// Frames from SSM Agents to clients.
    pub to_client: Noise,
    /// Cuts that go on until this is taken back.
    pub cut_every: Option<CutEvery>,
    /// Of the dice that noise throws. A session's dice are its own.
    pub seed: u64,

    /// What SSM Agents call themselves in the handshake; clients decide by it.
    pub agent_version: String,
    /// The pause of an SSM Agent after each message of data.
    #[serde(with = "seconds")]
    pub pace: Duration,
    /// Bytes of data in a message of an SSM Agent, at least 1024.
    pub payload: usize,
    /// The pause before a terminal is read for the first time.
    #[serde(with = "seconds")]
    pub prompt_delay: Duration,
    /// How long after the opening of a session its handler refuses data.
    #[serde(with = "seconds")]
    pub handler_delay: Duration,
    /// Idle sessions end after this, unless their document says otherwise.
    #[serde(with = "seconds")]
    pub idle_timeout: Duration,
    /// Whether SSM Agents ask for a random challenge in the KMS encryption context.
    pub kms_challenge: bool,
    /// Whether they insist on it.
    pub kms_challenge_required: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            retention: Retention::Keep,
            publication: true,
            data_channel_life: None,
            token_life: Duration::from_secs(3600),
            session_limit: None,
            session_key: None,
            to_agent: Noise::default(),
            to_client: Noise::default(),
            cut_every: None,
            seed: 1,
            agent_version: postern_proto::ssm::AGENT_VERSION.to_owned(),
            // SSM Agent session/plugins/port/port_mux.go and session/shell/shell.go.
            pace: Duration::from_millis(1),
            payload: 1024,
            prompt_delay: Duration::from_secs(1),
            handler_delay: Duration::ZERO,
            idle_timeout: Duration::from_secs(20 * 60),
            kms_challenge: true,
            kms_challenge_required: false,
        }
    }
}

/// Changes what `change` (a JSON object, nested where the knobs are) names and nothing else.
///
/// # Errors
/// With the reason, if the outcome would not be knobs.
pub fn merge(knobs: &Knobs, change: &Value) -> Result<Knobs, String> {
    let mut merged = serde_json::to_value(knobs).map_err(|error| error.to_string())?;
    overlay(&mut merged, change);
    serde_json::from_value(merged).map_err(|error| error.to_string())
}

fn overlay(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                overlay(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        value.as_secs_f64().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}

mod maybe_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|value| value.as_secs_f64()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(from)?
            .map(|value| Duration::try_from_secs_f64(value).map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_leaves_everything_else_as_it_was() {
        let change = json!({"to_agent": {"drop": 2.5}, "retention": "drop", "pace": 0,
            "cut_every": {"side": "client", "how": "abort", "every": 1.5}});
        let changed = merge(&Knobs::default(), &change).expect("knobs");
        let cut = CutEvery {
            side: Side::Client,
            how: Cut::Abort,
            every: Duration::from_millis(1500),
        };
        let expected = Knobs {
            to_agent: Noise {
                drop: 2.5,
                ..Noise::default()
            },
            retention: Retention::Drop,
            pace: Duration::ZERO,
            cut_every: Some(cut),
            ..Knobs::default()
        };
        assert_eq!(changed, expected);
        assert_eq!(
            merge(&changed, &json!({"cut_every": null}))
                .expect("knobs")
                .cut_every,
            None
        );
    }

    #[test]
    fn a_knob_that_does_not_exist_is_refused() {
        for wrong in [
            json!({"pase": 1}),
            json!({"pace": -1}),
            json!({"to_agent": 1}),
        ] {
            assert!(merge(&Knobs::default(), &wrong).is_err(), "{wrong}");
        }
    }
}
