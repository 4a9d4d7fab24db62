//! What `check` finds.

use super::*;

async fn findings(folder: &Path) -> Vec<Finding> {
    check::check(&folder.join("agent.toml"), true).await
}

fn level(findings: &[Finding], subject: &str) -> Level {
    let found = findings.iter().filter(|finding| finding.subject == subject);
    found.map(|finding| finding.level).max().unwrap()
}

/// The text with its dates made the same for every run.
fn dates(text: &str) -> String {
    let cut = |line: &str| match line.split_once("valid until ") {
        Some((before, _)) => format!("{before}valid until [date]\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(cut).collect()
}

#[tokio::test]
async fn check_passes_what_init_made_and_warns_of_what_is_left_to_do() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let mut found = findings(folder.path()).await;
    // What depends on the machine has tests of its own.
    let machine = ["listen", "health_listen", "open files", "free space"];
    found.retain(|finding| !machine.contains(&finding.subject.as_str()));
    let place = folder.path().display().to_string();
    let shown = finding::text(&found).replace(&place, "/etc/postern");
    insta::assert_snapshot!(dates(&shown));
}

#[tokio::test]
async fn check_tells_every_key_that_others_may_read() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    for name in [name::SSH_USER_CA, name::LOG_KEY] {
        let path = folder.path().join("keys").join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
    }
    std::fs::remove_file(folder.path().join("keys/server.key")).unwrap();
    let found = findings(folder.path()).await;
    let errors: Vec<_> = found.iter().filter(|f| f.level == Level::Error).collect();
    assert_eq!(errors.len(), 3);
    assert!(errors.iter().all(|finding| finding.hint.is_some()));
}

#[tokio::test]
async fn check_finds_a_key_that_serves_two_purposes() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let keys = folder.path().join("keys");
    std::fs::copy(keys.join(name::SSH_USER_CA), keys.join(name::SSH_HOST_CA)).unwrap();
    let found = findings(folder.path()).await;
    let shared = found
        .iter()
        .find(|finding| finding.level == Level::Error)
        .unwrap();
    insta::assert_snapshot!(shared.message, @"ssh-user-ca and ssh-host-ca hold the same key");
}

#[tokio::test]
async fn check_finds_certificates_of_another_installation() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made(one.path());
    made(two.path());
    let swap = |name: &str| {
        std::fs::copy(
            two.path().join("keys").join(name),
            one.path().join("keys").join(name),
        )
        .unwrap();
    };
    swap(name::SERVER_CA);
    assert_eq!(
        level(&findings(one.path()).await, "server certificate"),
        Level::Error
    );
    swap(name::CLIENT_ROOT);
    assert_eq!(
        level(&findings(one.path()).await, "client CA"),
        Level::Error
    );
    swap(name::SERVER);
    assert_eq!(level(&findings(one.path()).await, "keys"), Level::Error);
}

#[tokio::test]
async fn check_finds_a_log_key_of_another_agent_and_a_broken_deny_list() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    std::fs::write(folder.path().join("deny"), "alice\n").unwrap();
    assert_eq!(level(&findings(folder.path()).await, "trust"), Level::Error);
    let config = folder.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("id = \"bastion-1\"", "id = \"bastion-2\""),
    )
    .unwrap();
    assert_eq!(level(&findings(folder.path()).await, "keys"), Level::Error);
}

#[tokio::test]
async fn check_of_a_broken_file_says_where() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let config = folder.path().join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("policy = ", "policies = ")).unwrap();
    let found = findings(folder.path()).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].hint.as_deref(), Some("did you mean `policy`?"));
    assert!(
        found[0]
            .message
            .contains("agent.toml:15: there is no setting `policies`")
    );
}

/// What `check` says of a file after a change of its text.
async fn changed(folder: &Path, from: &str, to: &str) -> Vec<Finding> {
    let config = folder.join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(&config, text.replace(from, to)).unwrap();
    findings(folder).await
}

fn told_of(findings: &[Finding], subjects: &[&str], folder: &Path) -> String {
    let kept: Vec<_> = findings
        .iter()
        .filter(|finding| subjects.contains(&finding.subject.as_str()))
        .cloned()
        .collect();
    finding::text(&kept).replace(&folder.display().to_string(), "/etc/postern")
}

#[tokio::test]
async fn check_tells_each_wrong_policy_with_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let policy = folder.path().join("policy");
    let two = "permit (principal, action, resource);\n\n\
               @id(\"x\") permit (principal, action, resource) when { context.usr == \"root\" };\n";
    std::fs::write(policy.join("a.cedar"), two).unwrap();
    let first = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&first, &["policy"], folder.path()));
    std::fs::write(policy.join("a.cedar"), &two[two.find('@').unwrap()..]).unwrap();
    let second = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&second, &["policy"], folder.path()));
    std::fs::write(policy.join("a.cedar"), "permit (").unwrap();
    let third = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&third, &["policy"], folder.path()));
    std::fs::remove_dir_all(policy).unwrap();
    let fourth = findings(folder.path()).await;
    insta::assert_snapshot!(told_of(&fourth, &["policy"], folder.path()));
}

#[tokio::test]
async fn check_tells_what_is_wrong_with_the_inventory_file() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let hosts = folder.path().join("hosts.toml");
    let mut shown = String::new();
    let named = "[inventory]\nfile = \"hosts.toml\"\n";
    for text in [
        Some("[[target]]\nname = \"web-1\"\naddres = \"10.0.0.1\"\n"),
        Some(
            "[[target]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\nlogin = \"instance-connect\"\n",
        ),
        Some("[[target]]\nname = \"web-1\"\naddress = \"10.0.0.1\"\n"),
        None,
    ] {
        match text {
            Some(text) => std::fs::write(&hosts, text).unwrap(),
            None => std::fs::remove_file(&hosts).unwrap(),
        }
        let found = changed(folder.path(), "[inventory]\n", named).await;
        shown += &told_of(&found, &["inventory"], folder.path());
        changed(folder.path(), named, "[inventory]\n").await;
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn check_tells_where_the_agent_can_neither_listen_nor_dial_from() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    changed(
        folder.path(),
        "health_listen = \"127.0.0.1:9180\"",
        "health_listen = \"192.0.2.1:9180\"",
    )
    .await;
    let found = changed(
        folder.path(),
        "[dial]\n",
        "[dial]\nsource_address = \"192.0.2.1\"\nallow = [\"169.254.0.0/16\"]\n",
    )
    .await;
    let subjects = ["health_listen", "dial.source_address", "dial.allow"];
    insta::assert_snapshot!(told_of(&found, &subjects, folder.path()));
}

#[tokio::test]
async fn check_looks_at_the_store_and_changes_nothing_in_it() {
    use postern_proto::audit::event::Fact;

    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let subjects = ["evidence", "pinned host keys"];
    let mut shown = told_of(&findings(folder.path()).await, &subjects, folder.path());
    let config = Config::load(&folder.path().join("agent.toml")).unwrap();
    let keys = Keys::load(&config).unwrap();
    let settings = crate::evidence::Settings {
        free_floor: 0,
        deadline: std::time::Duration::from_secs(60),
        ..crate::evidence::Settings::new(
            config.evidence_store(),
            config.id.clone(),
            keys.log_key.text().to_owned().into(),
            config.evidence.recipients.clone(),
        )
    };
    let (evidence, _) = crate::evidence::Evidence::open(settings).unwrap();
    for _ in 0..3 {
        let event = crate::evidence::agent_event(Fact::AttestationChecked { fault: None });
        evidence.append(event).await.unwrap();
    }
    // While it is open, and after an agent that is gone.
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());
    evidence.shutdown().await.unwrap();
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());

    std::fs::write(folder.path().join("state/host-keys.json"), "{").unwrap();
    let entries = folder.path().join("state/evidence/tile/entries/000.p");
    std::fs::remove_file(entries.join("growing")).unwrap();
    let last = entries.join("5");
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&last, &bytes).unwrap();
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());
    assert_eq!(std::fs::read(&last).unwrap(), bytes);

    let fresh = tempfile::tempdir().unwrap();
    made(fresh.path());
    let key = name::LOG_KEY;
    std::fs::copy(
        fresh.path().join("keys").join(key),
        folder.path().join("keys").join(key),
    )
    .unwrap();
    shown += &told_of(&findings(folder.path()).await, &subjects, folder.path());
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn check_knows_the_key_before_while_the_logs_key_changes() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let config = Config::load(&folder.path().join("agent.toml")).unwrap();
    let old = Keys::load(&config).unwrap();
    assert!(old.previous_log_key.is_none());
    let (evidence, _) = crate::evidence::Evidence::open(crate::evidence::Settings {
        free_floor: 0,
        deadline: std::time::Duration::from_secs(60),
        ..crate::evidence::Settings::new(
            config.evidence_store(),
            config.id.clone(),
            old.log_key.text().to_owned().into(),
            config.evidence.recipients.clone(),
        )
    })
    .unwrap();
    evidence.shutdown().await.unwrap();

    let fresh = tempfile::tempdir().unwrap();
    made(fresh.path());
    let keys = folder.path().join("keys");
    let key = name::LOG_KEY;
    std::fs::rename(keys.join(key), keys.join("old.key")).unwrap();
    std::fs::copy(fresh.path().join("keys").join(key), keys.join(key)).unwrap();
    let subjects = ["keys", "evidence"];
    let mut shown = told_of(&findings(folder.path()).await, &subjects, folder.path());
    for name in ["old.key", "older.key", key] {
        let setting = format!("[evidence]\nprevious_key = \"{name}\"\n");
        let found = changed(folder.path(), "[evidence]\n", &setting).await;
        shown += &told_of(&found, &subjects, folder.path());
        if name == "old.key" {
            let config = Config::load(&folder.path().join("agent.toml")).unwrap();
            let previous = Keys::load(&config).unwrap().previous_log_key.unwrap();
            assert_eq!(previous.text(), old.log_key.text());
        }
        changed(folder.path(), &setting, "[evidence]\n").await;
    }
    insta::assert_snapshot!(shown);
}

#[tokio::test]
async fn check_says_that_there_is_no_room_for_recordings() {
    let folder = tempfile::tempdir().unwrap();
    made(folder.path());
    let found = changed(
        folder.path(),
        "# free_floor = \"1GiB\"",
        "free_floor = \"9000000GiB\"",
    )
    .await;
    let shown = told_of(&found, &["free space"], folder.path());
    let free = shown
        .split(": ")
        .nth(1)
        .unwrap()
        .split(" MiB")
        .next()
        .unwrap();
    let place = shown
        .split(" under ")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap();
    let shown = shown.replace(free, "[free]").replace(place, "[store]");
    insta::assert_snapshot!(shown);
}
