//! What a client writes of sessions on routes without an agent: in its own log, and handed over
//! to an agent as its word.

use lab::stack::Lab;
use postern::cli::GlobalArgs;
use postern::config::Environment;
use postern::context::Context;
use postern::evidence::{Carries, End, Evidence, Facts, Record, SsmSession};
use postern::output::Printer;
use postern_proto::gateway::message::CloseReason;
use serde_json::Value;

use crate::harness::{lab, postern_as, run};

/// Alice's client, in this process.
fn client(lab: &Lab) -> Context {
    let environment: Environment = lab.environment.clone().into_iter().collect();
    let global = GlobalArgs::default();
    Context::resolve(Printer::new(&global), &global, environment).unwrap()
}

/// A session as the SSM route opens it.
async fn session(context: &Context) -> Record {
    let (kept, _) = postern::identity::kept(context).await.unwrap().unwrap();
    let facts = Facts {
        target: "i-0123456789abcdef0".parse().unwrap(),
        name: "app-1".to_owned(),
        caller: kept.caller,
        mfa_at: kept.mfa_at,
        ssm: SsmSession {
            id: "alice-0123456789abcdef0".to_owned(),
            document: "SSM-SessionManagerRunShell".to_owned(),
            region: "eu-west-1".to_owned(),
            reason: None,
            request_id: None,
        },
        carries: Carries::Command {
            line: "cat the-sealed-line".to_owned(),
            terminal: None,
        },
    };
    let record = Evidence::open(context, facts).await.unwrap();
    record.output(b"the-words-to-find\n").await.unwrap();
    record
}

fn done() -> End {
    End {
        reason: CloseReason::Done,
        message: None,
        exit_status: Some(5),
    }
}

/// What carol reads through the agent alone, without this machine's own logs.
async fn audited(lab: &Lab, arguments: &[&str]) -> crate::harness::Told {
    let nothing = lab.folder().join("no-evidence");
    let mut command = lab.postern("carol");
    run(
        command.args(arguments).env("POSTERN_EVIDENCE", nothing),
        b"",
    )
    .await
}

fn json(told: &crate::harness::Told) -> Value {
    serde_json::from_slice(&told.stdout).unwrap()
}

#[tokio::test]
async fn what_a_client_claims_stands_in_the_agents_log_as_its_word() {
    let lab = lab().await;
    // Enrolled before, as whoever used the agent once is.
    postern_as(&lab, "alice", &["ls"]).await.status(0);
    let context = client(&lab);
    let record = session(&context).await;
    let id = record.id().to_string();
    record.close(done()).await.unwrap();

    postern_as(&lab, "carol", &["login"]).await.status(0);
    let listed = audited(&lab, &["--json", "audit", "ls"]).await.status(0);
    let row = &json(&listed)["sessions"][0];
    assert_eq!(row["session"], id.as_str());
    assert_eq!(
        (&row["source"], &row["end"]),
        (&"client".into(), &"done".into())
    );
    assert_eq!(
        (&row["exit_status"], &row["target"]),
        (&5.into(), &"app-1".into())
    );
    assert!(row["who"].as_str().unwrap().ends_with(":user/alice"));
    let shown = audited(&lab, &["audit", "show", &id]).await.status(0);
    assert!(
        shown
            .out()
            .contains("a client claims: command `cat the-sealed-line`")
    );
    let played = audited(&lab, &["audit", "play", &id, "--speed", "0"]).await;
    assert!(played.status(0).out().contains("the-words-to-find"));
    let verified = audited(&lab, &["--json", "audit", "verify"])
        .await
        .status(0);
    let report = json(&verified);
    assert_eq!(report["claims"]["sessions"]["closed"], 1, "{report}");
    assert_eq!(report["sessions"]["closed"], 0, "{report}");

    // With the client's own log beside the agent's the session is one all the same.
    let listed = postern_as(&lab, "carol", &["--json", "audit", "ls"]).await;
    let rows = json(&listed.status(0));
    assert_eq!(rows["sessions"].as_array().unwrap().len(), 1, "{rows}");
    let verified = postern_as(&lab, "carol", &["--json", "audit", "verify"]).await;
    let report = json(&verified.status(0));
    let own = &report["further"][0];
    assert!(
        own["log"].as_str().unwrap().starts_with("client-"),
        "{report}"
    );
    assert_eq!(own["claims"]["sessions"]["closed"], 1, "{report}");
    assert_eq!(own["recordings"]["match"], 1, "{report}");
    // And from a folder, by the same code.
    let folder = context.evidence.join(own["log"].as_str().unwrap());
    let folder = folder.display().to_string();
    let verified = postern_as(&lab, "alice", &["audit", "verify", "--store", &folder]).await;
    let told = verified.status(0).out();
    assert!(
        told.contains("claims of clients, which no agent saw: 1 closed"),
        "{told}"
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn claims_wait_for_an_agent_that_is_away() {
    let mut lab = lab().await;
    postern_as(&lab, "carol", &["login"]).await.status(0);
    let context = client(&lab);
    lab.agent.kill().await.unwrap();
    let away = session(&context).await;
    away.close(done()).await.unwrap();
    // The person reads the own log, told that the agent's is not there.
    let listed = postern_as(&lab, "alice", &["--json", "audit", "ls"])
        .await
        .status(0);
    assert_eq!(
        json(&listed)["sessions"][0]["session"],
        away.id().to_string()
    );
    assert!(
        listed.stderr.contains("the agent's log is left out"),
        "{}",
        listed.stderr
    );

    lab.agent.start().await.unwrap();
    let next = session(&context).await;
    next.close(done()).await.unwrap();
    let store = lab.agent.audit_store.display().to_string();
    let handed_over = async || {
        let listed = audited(&lab, &["--json", "audit", "ls", "--store", &store]).await;
        let rows = json(&listed.status(0));
        let rows = rows["sessions"].as_array().unwrap();
        let mut ids: Vec<_> = rows
            .iter()
            .filter(|row| row["end"] == "done")
            .map(|row| row["session"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    let mut expected = vec![away.id().to_string(), next.id().to_string()];
    expected.sort();
    assert_eq!(handed_over().await, expected);
    // Another run hands nothing over twice.
    let third = session(&context).await;
    third.close(done()).await.unwrap();
    let report = audited(&lab, &["--json", "audit", "verify", "--store", &store]).await;
    let report = json(&report.status(0));
    assert_eq!(report["claims"]["sessions"]["closed"], 3, "{report}");
    let all = [
        "--json", "audit", "ls", "--events", "--limit", "1000", "--store", &store,
    ];
    let told = audited(&lab, &all).await.status(0);
    let events = serde_json::Deserializer::from_slice(&told.stdout).into_iter::<Value>();
    let mut entries: Vec<u64> = events
        .map(|event| event.unwrap())
        .filter(|event| event["event"]["fact"]["type"] == "claimed")
        .map(|event| event["event"]["fact"]["entry"].as_u64().unwrap())
        .collect();
    let taken = entries.len();
    entries.dedup();
    assert!(
        entries.is_sorted() && entries.len() == taken && taken >= 9,
        "{entries:?}"
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_recording_that_cannot_be_played_is_no_success_since_another_log_was_read() {
    let lab = lab().await;
    postern_as(
        &lab,
        "alice",
        &["connect", "web-1", "--", "echo the-words-to-find"],
    )
    .await
    .status(0);
    // Now there are two logs to read: the agent's and this client's.
    session(&client(&lab)).await.close(done()).await.unwrap();
    postern_as(&lab, "carol", &["login"]).await.status(0);
    let listed = audited(&lab, &["--json", "audit", "ls"]).await.status(0);
    let rows = json(&listed);
    let of_agent = rows["sessions"].as_array().unwrap().iter();
    let mut of_agent = of_agent.filter(|row| row["source"] == "agent");
    let id = of_agent.next().unwrap()["session"]
        .as_str()
        .unwrap()
        .to_owned();
    let play = ["audit", "play", &id, "--speed", "0"];
    let told = postern_as(&lab, "carol", &play).await.status(0);
    assert!(told.out().contains("the-words-to-find"));

    let path = lab.agent.audit_store.join("recordings");
    let path = path.join(format!("{id}-0"));
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let told = postern_as(&lab, "carol", &play).await.status(1);
    told.says(&["error"]);
    lab.stop().await.unwrap();
}
