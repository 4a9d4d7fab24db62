//! A lab AWS with its certificate, and Amazon's own clients as child processes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use lab::aws::{Aws, AwsConfig, Instance, Role, Root, SsmNode, Subnet, Tls, User, Vpc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

pub(crate) const ACCOUNT: &str = "111122223333";
pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const ATTEST: &str = "arn:aws:iam::111122223333:role/postern-attest";
pub(crate) const OPERATOR: &str = "arn:aws:iam::111122223333:role/operator";
pub(crate) const WEB_1: &str = "i-0123456789abcdef0";

/// No client answers slower than this unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running emulator and the folder its clients need.
pub(crate) struct Lab {
    pub(crate) aws: Aws,
    folder: TempDir,
}

/// Credentials as clients hold them.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

/// What an `aws` command left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn document(statement: &Value) -> String {
    json!({"Version": "2012-10-17", "Statement": statement}).to_string()
}

pub(crate) fn allow(actions: &[&str], resource: &str) -> String {
    document(&json!({"Effect": "Allow", "Action": actions, "Resource": resource}))
}

impl Lab {
    /// alice and bob may attest, `reader` may look everything up, and one instance and its neighbours exist.
    pub(crate) async fn start() -> Self {
        crate::watchdog::watch();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ip = Ipv4Addr::new(127, 0, 0, 1);
        let (tls, ca) = certificate(ip.into());
        std::fs::write(folder.path().join("ca.pem"), ca).expect("the CA is written");
        let mut config = AwsConfig::new(ACCOUNT, REGION, SocketAddr::from((ip, 0)), tls);
        config.root = Root {
            access_key: Some(lab::aws::AccessKey::random()),
            mfa_enabled: false,
        };
        let may_assume = allow(
            &["sts:AssumeRole"],
            &format!("arn:aws:iam::{ACCOUNT}:role/*"),
        );
        let look = allow(&["ec2:*", "ssm:*", "iam:*", "ec2-instance-connect:*"], "*");
        config.users = vec![
            User::new("alice").with_policy("assume", may_assume.clone()),
            User::new("bob").with_policy("assume", may_assume),
            User::new("carol"),
            User::new("reader").with_policy("look", look).without_mfa(),
        ];
        let account_root = json!({"AWS": format!("arn:aws:iam::{ACCOUNT}:root")});
        let attest = document(&json!({
            "Effect": "Allow", "Principal": account_root, "Action": "sts:AssumeRole",
            "Condition": {
                "Bool": {"aws:MultiFactorAuthPresent": "true"},
                "NumericLessThan": {"aws:MultiFactorAuthAge": "3600"},
            },
        }));
        let with_mfa = document(&json!({
            "Effect": "Allow", "Principal": account_root, "Action": "sts:AssumeRole",
            "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}},
        }));
        config.roles = vec![
            Role::new("postern-attest", attest),
            Role::new("operator", with_mfa).with_policy("look", allow(&["ec2:*", "sts:*"], "*")),
        ];
        let subnet = Subnet {
            id: "subnet-0a1b2c3d4e5f60718".into(),
            vpc_id: "vpc-0a1b2c3d4e5f60718".into(),
            cidr: "10.20.1.0/24".into(),
            availability_zone: "eu-west-1a".into(),
            name: "private-a".into(),
        };
        config.vpcs = vec![Vpc {
            id: subnet.vpc_id.clone(),
            region: REGION.into(),
            cidr: "10.20.0.0/16".into(),
            name: "main".into(),
        }];
        config.instances = instances(&subnet);
        config.subnets = vec![subnet];
        config.kms_keys = vec!["sessions".into()];
        let aws = Aws::start(config).await.expect("the emulator starts");
        Self { aws, folder }
    }

    pub(crate) fn keys(&self, user: &str) -> Keys {
        let key = self.aws.user(user).expect("a seeded user").access_key;
        Keys {
            id: key.id,
            secret: key.secret,
            token: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Python with only the environment that a client of the lab needs.
    fn python(&self) -> Command {
        let mut command = Command::new(python());
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.folder.path())
            .env("AWS_CONFIG_FILE", self.path("config"))
            .env("AWS_SHARED_CREDENTIALS_FILE", self.path("credentials"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CA_BUNDLE", self.path("ca.pem"))
            .env("AWS_ENDPOINT_URL", self.aws.endpoint())
            .env("LAB_ENDPOINT", self.aws.endpoint())
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_MAX_ATTEMPTS", "1")
            .env("AWS_PAGER", "")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `aws ARGUMENTS`.
    pub(crate) async fn cli(&self, keys: &Keys, arguments: &[&str]) -> Finished {
        let mut command = self.python();
        command
            .args(["-m", "awscli", "--output", "json"])
            .args(arguments)
            .env("AWS_ACCESS_KEY_ID", &keys.id)
            .env("AWS_SECRET_ACCESS_KEY", &keys.secret);
        if let Some(token) = &keys.token {
            command.env("AWS_SESSION_TOKEN", token);
        }
        let output = timeout(PATIENCE, command.output())
            .await
            .expect("the aws command ends in time")
            .expect("the aws command starts");
        Finished {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn boto(&self) -> Boto {
        let mut command = self.python();
        command
            .args(["-c", include_str!("boto.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("python starts");
        let input = child.stdin.take().expect("stdin is piped");
        let output = child.stdout.take().expect("stdout is piped");
        Boto {
            _child: child,
            input,
            output: BufReader::new(output).lines(),
        }
    }
}

impl Finished {
    /// The JSON that a successful command printed.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.status, 0, "{self:?}");
        serde_json::from_str(&self.stdout).expect("the command prints JSON")
    }

    /// Whether AWS refused the call with this code.
    pub(crate) fn failed_with(&self, code: &str) -> bool {
        self.status != 0 && self.stderr.contains(&format!("({code})"))
    }
}

/// A Python process with boto3 (boto.py beside this file).
pub(crate) struct Boto {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Boto {
    /// Sends one command and waits for its answer.
    pub(crate) async fn ask(&mut self, request: &Value) -> Value {
        let line = format!("{request}\n");
        self.input
            .write_all(line.as_bytes())
            .await
            .expect("python reads");
        let answer = timeout(PATIENCE, self.output.next_line())
            .await
            .expect("python answers in time")
            .expect("python's output is text");
        let answer = answer.unwrap_or_else(|| {
            panic!("python ended on {} {}", request["do"], request["operation"])
        });
        serde_json::from_str(&answer).expect("python answers JSON")
    }

    /// Calls an operation. The error is its code.
    pub(crate) async fn call(
        &mut self,
        keys: &Keys,
        service: &str,
        operation: &str,
        params: Value,
    ) -> Result<Value, String> {
        let request = json!({"do": "call", "service": service, "operation": operation,
            "params": params, "keys": keys.json()});
        let mut answer = self.ask(&request).await;
        match answer.get("error") {
            None => Ok(answer["ok"].take()),
            Some(code) => Err(code.as_str().expect("a code").to_owned()),
        }
    }

    /// Calls an operation that answers credentials.
    pub(crate) async fn credentials(
        &mut self,
        keys: &Keys,
        operation: &str,
        params: Value,
    ) -> Result<Keys, String> {
        let answer = self.call(keys, "sts", operation, params).await?;
        Ok(Keys::read(&answer["Credentials"]))
    }

    pub(crate) async fn session(
        &mut self,
        lab: &Lab,
        user: &str,
        code: Option<&str>,
    ) -> Result<Keys, String> {
        let params = match code {
            Some(code) => json!({"SerialNumber": lab.aws.mfa_serial(user), "TokenCode": code}),
            None => json!({}),
        };
        self.credentials(&lab.keys(user), "get_session_token", params)
            .await
    }

    pub(crate) async fn mfa_session(&mut self, lab: &Lab, user: &str) -> Keys {
        let code = lab.aws.unused_code(user).expect("a code is left");
        self.session(lab, user, Some(&code))
            .await
            .expect("a session")
    }

    pub(crate) async fn assume(&mut self, keys: &Keys, role: &str) -> Result<Keys, String> {
        let params = json!({"RoleArn": role, "RoleSessionName": "bind"});
        self.credentials(keys, "assume_role", params).await
    }
}

impl Keys {
    pub(crate) fn read(credentials: &Value) -> Self {
        let get = |name: &str| credentials[name].as_str().expect(name).to_owned();
        Self {
            id: get("AccessKeyId"),
            secret: get("SecretAccessKey"),
            token: Some(get("SessionToken")),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({"id": self.id, "secret": self.secret, "token": self.token})
    }
}

fn instances(subnet: &Subnet) -> Vec<Instance> {
    let mut web = Instance::new(WEB_1, "web-1", Ipv4Addr::new(127, 20, 0, 11), subnet)
        .with_tag("env", "production");
    web.ssm = Some(SsmNode::online());
    let mut all = vec![web];
    for n in 0..11_u8 {
        let ip = Ipv4Addr::new(127, 20, 1, n);
        let mut instance = Instance::new(&format!("i-0000000000000000{n:x}"), "worker", ip, subnet);
        instance.ssm = Some(SsmNode::online());
        all.push(instance);
    }
    all
}

/// The Python of the tests' clients, or a failure that says how to get it.
pub(crate) fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("POSTERN_TEST_PYTHON") {
        return python.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .expect("HOME or XDG_CACHE_HOME is set");
    let python = cache.join("postern-tests/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: the AWS clients that judge the lab are not installed; hint: run tests/setup",
        python.display()
    );
    python
}

/// A server certificate for one address, and its CA in PEM.
fn certificate(ip: IpAddr) -> (Tls, String) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::new(Vec::new()).expect("no names");
    // A name of its own: OpenSSL takes a certificate whose issuer has its own name for self-signed.
    ca.distinguished_name.push(DnType::CommonName, "Lab CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let ca_cert = ca.self_signed(&ca_key).expect("a CA");
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().expect("a key");
    let mut server = CertificateParams::new(vec![ip.to_string()]).expect("an address");
    server
        .distinguished_name
        .push(DnType::CommonName, "Lab AWS");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let server = server.signed_by(&key, &issuer).expect("a certificate");
    let tls = Tls::from_pem(&server.pem(), &key.serialize_pem()).expect("PEM");
    (tls, ca_cert.pem())
}
