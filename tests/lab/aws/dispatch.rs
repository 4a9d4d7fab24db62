//! The way of one request: signature, caller, action, answer, event.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::account::Account;
use super::caller::Caller;
use super::condition::Context;
use super::error::ApiError;
use super::faults::{Fault, Faults};
use super::fleet::Fleet;
use super::instance_connect::PushedKeys;
use super::kms::{self, Kms};
use super::policy::Verdict;
use super::reply::{Answer, Asked, Output};
use super::request::{Params, RawRequest};
use super::service::{Protocol, Service};
use super::sigv4::{SignatureError, Signed};
use super::trail::{self, Record, Trail};
use super::{ec2, iam, ids, instance_connect, ssm, sts};
use crate::ssm::{Hub, SessionDocument};

/// Everything that calls read and change. One lock guards it, so every call is one step: a code that two logins use at
/// once opens one of them.
pub(crate) struct State {
    pub(crate) account: Account,
    pub(crate) fleet: Fleet,
    pub(crate) pushed: PushedKeys,
    pub(crate) trail: Trail,
    pub(crate) faults: Faults,
    /// Regions that a credential scope may name.
    pub(crate) regions: Vec<String>,
    /// Running sessions, which have a lock of their own.
    pub(crate) sessions: Arc<Hub>,
    /// Where clients connect with a session's token.
    pub(crate) gateway: SocketAddr,
    /// Session documents of the account's own.
    pub(crate) documents: Vec<SessionDocument>,
    pub(crate) kms: Arc<Kms>,
}

/// A request, read as far as it can be without knowing anybody.
pub(crate) struct Incoming {
    raw: RawRequest,
    source: IpAddr,
    request_id: String,
    signed: Result<Signed, SignatureError>,
    service: Service,
    action: Result<String, ApiError>,
    args: Args,
}

/// What an action is asked with.
pub(crate) enum Args {
    Query(Params),
    Json(Map<String, Value>),
}

/// One call of a known caller: what the services get to see.
pub(crate) struct Call<'a> {
    pub(crate) account: &'a mut Account,
    pub(crate) fleet: &'a Fleet,
    pub(crate) pushed: &'a mut PushedKeys,
    pub(crate) regions: &'a [String],
    pub(crate) sessions: &'a Hub,
    pub(crate) gateway: SocketAddr,
    pub(crate) documents: &'a [SessionDocument],
    pub(crate) kms: &'a Kms,
    pub(crate) service: Service,
    pub(crate) action: &'a str,
    pub(crate) caller: Caller,
    pub(crate) context: Context,
    pub(crate) region: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) now: OffsetDateTime,
    /// Set when a code in this very call was right.
    pub(crate) mfa_in_call: bool,
}

impl Incoming {
    pub(crate) fn read(raw: RawRequest, source: IpAddr) -> Self {
        let signed = Signed::parse(&raw);
        let target = raw.header("x-amz-target").map(str::to_owned);
        let named = signed.as_ref().ok().map(|signed| signed.service.clone());
        let service = match &named {
            Some(name) => Service::ALL
                .into_iter()
                .find(|service| service.name() == name),
            // Unsigned, so nobody's: only the shape of the refusal depends on this.
            None => target.as_deref().and_then(|target| {
                Service::ALL
                    .into_iter()
                    .find(|service| match service.protocol() {
                        Protocol::Json { target: prefix } => target.starts_with(prefix),
                        _ => false,
                    })
            }),
        };
        let (signed, service) = match (signed, service) {
            (Ok(_), None) => {
                let message = "Credential should be scoped to correct service.".to_owned();
                (Err(SignatureError::Scope(message)), Service::Sts)
            }
            (signed, service) => (signed, service.unwrap_or(Service::Sts)),
        };
        let (action, args) = read_action(&raw, service, target.as_deref());
        let request_id = ids::request_id();
        Self {
            raw,
            source,
            request_id,
            signed,
            service,
            action,
            args,
        }
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The faults that this call meets. Taken before the call is decided, so that a delay comes first.
    pub(crate) fn faults(&self, state: &mut State) -> Vec<Fault> {
        state.faults.take(self.service, self.action_name())
    }

    fn action_name(&self) -> &str {
        self.action.as_deref().unwrap_or("")
    }

    /// Decides the call, does what it asks, and writes the event.
    pub(crate) fn process(
        &self,
        state: &mut State,
        now: OffsetDateTime,
        faults: &[Fault],
    ) -> Answer {
        let (result, caller, mfa) = match faults.iter().find_map(Fault::error) {
            Some(error) => (Err(error), None, false),
            None => self.decide(state, now),
        };
        let region = self
            .signed
            .as_ref()
            .map_or("", |signed| signed.region.as_str());
        state.trail.record(
            &Record {
                service: self.service,
                action: self.action_name(),
                region,
                request_id: &self.request_id,
                source: self.source,
                user_agent: self.raw.header("user-agent").unwrap_or(""),
                parameters: self.shown_parameters(),
                caller: caller.as_ref(),
                mfa,
                error: result.as_ref().err(),
            },
            now,
        );
        let accepts_json = self
            .raw
            .header("accept")
            .is_some_and(|accept| accept == "application/json");
        let asked = Asked {
            service: self.service,
            action: self.action_name(),
            request_id: &self.request_id,
            wants_json: accepts_json || faults.iter().any(Fault::wants_json),
        };
        let mut answer = asked.answer(result);
        faults.iter().for_each(|fault| fault.spoil(&mut answer));
        answer
    }

    fn decide(
        &self,
        state: &mut State,
        now: OffsetDateTime,
    ) -> (Result<Output, ApiError>, Option<Caller>, bool) {
        let caller = match self.authenticate(state, now) {
            Ok(caller) => caller,
            Err(error) => return (Err(error), None, false),
        };
        let (action, signed) = match (&self.action, &self.signed) {
            (Ok(action), Ok(signed)) => (action, signed),
            (Err(error), _) => return (Err(error.clone()), Some(caller), false),
            (_, Err(error)) => return (Err(ApiError::signature(self.service, error)), None, false),
        };
        let mut call = Call {
            context: self.context(&caller, &signed.region, now),
            account: &mut state.account,
            fleet: &state.fleet,
            pushed: &mut state.pushed,
            regions: &state.regions,
            sessions: &state.sessions,
            gateway: state.gateway,
            documents: &state.documents,
            kms: &state.kms,
            service: self.service,
            action,
            mfa_in_call: false,
            caller,
            region: &signed.region,
            request_id: &self.request_id,
            now,
        };
        let result = match (&self.args, self.service) {
            (Args::Query(params), Service::Sts) => sts::handle(&mut call, params),
            (Args::Query(params), Service::Iam) => iam::handle(&mut call, params),
            (Args::Query(params), Service::Ec2) => ec2::handle(&mut call, params),
            (Args::Json(body), Service::InstanceConnect) => {
                instance_connect::handle(&mut call, body)
            }
            (Args::Json(body), Service::Ssm) => ssm::handle(&mut call, body),
            (Args::Json(body), Service::Kms) => kms::handle(&mut call, body),
            _ => Err(ApiError::unknown_action(self.service, action)),
        };
        let mfa = call.mfa_in_call || call.caller.mfa_time().is_some();
        (result, Some(call.caller), mfa)
    }

    /// Key id and token lead to a secret, the secret to a signature, and only then does anything count.
    fn authenticate(&self, state: &State, now: OffsetDateTime) -> Result<Caller, ApiError> {
        let refuse = |error: &SignatureError| ApiError::signature(self.service, error);
        let signed = self.signed.as_ref().map_err(refuse)?;
        // IAM is signed for us-east-1 wherever it is called from; clients of a custom endpoint use their own region.
        let iam = self.service == Service::Iam && signed.region == "us-east-1";
        if !iam && !state.regions.contains(&signed.region) {
            let message = "Credential should be scoped to a valid region.".to_owned();
            return Err(refuse(&SignatureError::Scope(message)));
        }
        let Some((caller, secret)) = state
            .account
            .claimed(&signed.access_key_id, signed.token.as_deref())
        else {
            return Err(ApiError::unknown_key(self.service));
        };
        signed.check_time(now).map_err(|error| refuse(&error))?;
        signed
            .verify(&self.raw, secret)
            .map_err(|error| refuse(&error))?;
        if caller
            .session
            .as_ref()
            .is_some_and(|session| session.expires <= now)
        {
            return Err(ApiError::expired(self.service));
        }
        Ok(caller)
    }

    /// The condition keys that AWS sets for every request, present or absent as AWS has them.
    fn context(&self, caller: &Caller, region: &str, now: OffsetDateTime) -> Context {
        let mut context = Context::default();
        context.set("aws:CurrentTime", trail::timestamp(now));
        context.set("aws:EpochTime", now.unix_timestamp().to_string());
        context.set("aws:SecureTransport", "true");
        context.set("aws:SourceIp", self.source.to_string());
        context.set("aws:RequestedRegion", region);
        context.set("aws:ViaAWSService", "false");
        if let Some(agent) = self.raw.header("user-agent") {
            context.set("aws:UserAgent", agent);
        }
        caller.describe(&mut context, now);
        context
    }

    fn shown_parameters(&self) -> Map<String, Value> {
        match &self.args {
            Args::Query(params) => trail::shown(
                params
                    .iter()
                    .map(|(name, value)| (name, Value::from(value))),
            ),
            Args::Json(body) => trail::shown(
                body.iter()
                    .map(|(name, value)| (name.as_str(), value.clone())),
            ),
        }
    }
}

fn read_action(
    raw: &RawRequest,
    service: Service,
    target: Option<&str>,
) -> (Result<String, ApiError>, Args) {
    let nothing = || Args::Query(Params::default());
    if raw.path != "/" {
        return (Err(ApiError::unknown_action(service, &raw.path)), nothing());
    }
    if let Protocol::Json { target: prefix } = service.protocol() {
        let action = target
            .and_then(|target| target.split_once('.'))
            .filter(|(service, _)| *service == prefix)
            .map(|(_, action)| action.to_owned())
            .filter(|_| raw.method == "POST")
            .ok_or_else(|| ApiError::unknown_action(service, ""));
        return match serde_json::from_slice(&raw.body) {
            Ok(Value::Object(body)) => (action, Args::Json(body)),
            _ => (
                Err(ApiError::new(
                    400,
                    "SerializationException",
                    "The body is not a JSON object",
                )),
                Args::Json(Map::new()),
            ),
        };
    }
    let params = match Params::parse(raw) {
        Ok(params) => params,
        Err(error) => return (Err(ApiError::malformed_query(&error)), nothing()),
    };
    let action = match (
        params.get("Action"),
        params.get("Version"),
        service.protocol(),
    ) {
        (None, _, _) => Err(ApiError::new(
            400,
            "MissingAction",
            "The request must contain the parameter Action.",
        )),
        (Some(action), Some(given), Protocol::Query { version, .. }) if given == version => {
            Ok(action.to_owned())
        }
        (Some(action), Some("2016-11-15"), Protocol::Ec2) => Ok(action.to_owned()),
        (Some(action), given, _) => Err(ApiError::new(
            400,
            "InvalidAction",
            format!(
                "Could not find operation {action} for version {}",
                given.unwrap_or("NO_VERSION_SPECIFIED")
            ),
        )),
    };
    // An action becomes the name of an XML element.
    let action = action.and_then(|action| {
        let plain = action.len() <= 64 && action.chars().all(|c| c.is_ascii_alphanumeric());
        if plain {
            Ok(action)
        } else {
            Err(ApiError::unknown_action(service, ""))
        }
    });
    (action, Args::Query(params))
}

impl Call<'_> {
    /// Fails unless the caller's policies allow this action on this resource.
    pub(crate) fn authorise(&self, action: &str, resource: &str) -> Result<(), ApiError> {
        self.authorise_with(action, resource, &[])
    }

    /// The same with condition keys of the action's own.
    pub(crate) fn authorise_with(
        &self,
        action: &str,
        resource: &str,
        facts: &[(String, String)],
    ) -> Result<(), ApiError> {
        let mut context = self.context.clone();
        for (key, value) in facts {
            context.set(key, value.clone());
        }
        match self
            .account
            .decide(&self.caller, action, resource, &context)
        {
            Verdict::Allowed => Ok(()),
            verdict => {
                let explicit = verdict == Verdict::ExplicitDeny;
                Err(ApiError::denied(
                    self.service,
                    &self.caller.arn(),
                    action,
                    resource,
                    explicit,
                ))
            }
        }
    }

    pub(crate) fn unknown_action(&self) -> ApiError {
        ApiError::unknown_action(self.service, self.action)
    }
}
