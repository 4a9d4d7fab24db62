//! A crowd: many people of the account at once. Their clients are one process (a program each
//! would be more than the machine holds), which runs the client's own library: login, enrolment,
//! certificate, TLS, pipe, SSH. It does what it is told, line by line.

pub mod orders;

mod member;
mod process;
mod session;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use self::orders::{Answer, Kind, Order, Person, Setup};
use crate::account::{ACCOUNT, ATTESTATION_ROLE, PEOPLE, REGION};
use crate::aws::User;
use crate::stack::{ECHO, Lab, Options, login_user};
use crate::targets::sshd::write_private;

pub use process::serve;

/// The argument with which this program becomes a crowd.
pub const ARGUMENT: &str = "bench-crowd";
/// What a policy of the lab lets everybody do while it is measured.
const POLICY: &str = "\n@id(\"crowd\")\n\
    permit (principal, action in [Action::\"connect\", Action::\"tunnel\"], resource);\n";
const FAREWELL: Duration = Duration::from_secs(300);

/// The lab that a crowd needs.
pub fn options() -> Options {
    Options {
        policy: Some(POLICY.to_owned()),
        echo: true,
        ..Options::default()
    }
}

/// A crowd that waits for orders. Its people log out when it leaves.
pub struct Crowd {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    /// Makes `people` users called `name-…`, and their client process. Tunnels go to `port` of
    /// `db-1`. Person number n finds the agent at `doors[n % doors.len()]`.
    pub async fn gather(
        lab: &Lab,
        name: &str,
        people: usize,
        port: u16,
        doors: &[SocketAddr],
    ) -> Result<Self> {
        let seed = PEOPLE.first().context("somebody")?.totp_secret;
        let mut setup = Setup {
            people: Vec::with_capacity(people),
            totp_secret: seed.to_owned(),
            tunnel: "db-1".to_owned(),
            port,
            shell: ECHO.to_owned(),
            user: login_user(),
        };
        for number in 0..people {
            let name = format!("{name}-{number:04}");
            lab.aws.put_user(user(&name, seed))?;
            let door = doors.get(number % doors.len().max(1)).context("a door")?;
            setup.people.push(person(lab, &name, *door)?);
        }
        let mut child = Command::new(&lab.programs.lab)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the crowd")?;
        let answers = BufReader::new(child.stdout.take().context("the crowd's stdout")?).lines();
        let mut orders = child.stdin.take().context("the crowd's stdin")?;
        say(&mut orders, &setup).await?;
        Ok(Self {
            child,
            orders,
            answers,
        })
    }

    /// The process.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the crowd ended")
    }

    /// Has everybody log in: AWS STS is given a code by each.
    pub async fn log_in(&mut self) -> Result<Answer> {
        self.order(&Order::LogIn, Duration::from_secs(300)).await
    }

    /// Opens sessions of one kind, so many at one time.
    pub async fn open(&mut self, kind: Kind, count: usize, at_once: usize) -> Result<Answer> {
        let order = Order::Open {
            kind,
            count,
            at_once,
        };
        self.order(&order, Duration::from_secs(600)).await
    }

    /// Gives an order and waits for its answer.
    pub async fn order(&mut self, order: &Order, deadline: Duration) -> Result<Answer> {
        say(&mut self.orders, order).await?;
        let line = tokio::time::timeout(deadline, self.answers.next_line())
            .await
            .with_context(|| format!("the crowd did not do {order:?} within {deadline:?}"))??
            .context("the crowd ended")?;
        serde_json::from_str(&line).context("the crowd's answer")
    }

    /// Ends all sessions and logs everybody out.
    pub async fn leave(mut self) -> Result<()> {
        drop(self.orders);
        let ended = tokio::time::timeout(FAREWELL, self.child.wait()).await;
        let status = ended.context("the crowd does not leave")??;
        ensure!(status.success(), "the crowd ended with {status}");
        Ok(())
    }
}

async fn say(orders: &mut ChildStdin, what: &impl serde::Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    orders.write_all(&line).await?;
    Ok(orders.flush().await?)
}

fn user(name: &str, seed: &str) -> User {
    let attest = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"{ATTESTATION_ROLE}"}}]}}"#
    );
    let mut user = User::new(name).with_policy("attest", attest);
    user.totp_secret = Some(seed.to_owned());
    user
}

/// What a person's computer holds: the lab's environment, with AWS files and a state of its own.
fn person(lab: &Lab, name: &str, door: SocketAddr) -> Result<Person> {
    let folder = lab.folder().join("crowd").join(name);
    std::fs::create_dir_all(&folder)?;
    let (config, credentials) = (folder.join("config"), folder.join("credentials"));
    let keys = lab.aws.user(name).context("a new user")?.access_key;
    let profile = format!(
        "[profile {name}]\nregion = {REGION}\nendpoint_url = {}\nca_bundle = {}\n\
         mfa_serial = arn:aws:iam::{ACCOUNT}:mfa/{name}\n",
        lab.aws.endpoint(),
        lab.environment
            .get("AWS_CA_BUNDLE")
            .context("the CA of the lab's AWS")?,
    );
    write_private(&config, profile.as_bytes())?;
    let text = format!(
        "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.id, keys.secret
    );
    write_private(&credentials, text.as_bytes())?;
    let shown = |path: &Path| path.display().to_string();
    let mut environment = lab.environment.clone();
    for (name, value) in [
        ("AWS_PROFILE", name.to_owned()),
        ("AWS_CONFIG_FILE", shown(&config)),
        ("AWS_SHARED_CREDENTIALS_FILE", shown(&credentials)),
        ("POSTERN_STATE", shown(&folder.join("state"))),
        ("POSTERN_AGENT", door.to_string()),
    ] {
        environment.insert(name.to_owned(), value);
    }
    Ok(Person { environment })
}
