//! Sessions: data both ways, over cuts, to their end.

use bytes::Bytes;

use super::super::Event;
use super::super::testing::Order;
use super::*;

/// Data until there is so much of it.
async fn read(session: &mut Session, length: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < length {
        match soon(session.next_event()).await {
            Some(Event::Data(bytes)) => data.extend_from_slice(&bytes),
            other => panic!("after {} bytes: {other:?}", data.len()),
        }
    }
    data
}

/// Bytes that do not repeat soon.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_carries_both_ways_and_is_ended_at_aws() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    let mut session = soon(Session::start(&ssm, start(document::SHELL)))
        .await
        .unwrap();
    assert_eq!(read(&mut session, 2).await, b"$ ");
    let size = postern_proto::ssm::payload::TerminalSize {
        cols: 132,
        rows: 43,
    };
    session.resize(size).await.unwrap();
    assert_eq!(read(&mut session, 8).await, b"[132x43]");
    // A lone line feed stays one.
    session.write(Bytes::from_static(b"\n")).await.unwrap();
    assert_eq!(read(&mut session, 1).await, b"\n");
    assert_eq!(session.id(), "alice-0001");
    assert_eq!(session.request_id(), Some("r-1"));
    assert_eq!(fake.count("TerminateSession"), 0);
    soon(session.end()).await.unwrap();
    assert_eq!(fake.count("TerminateSession"), 1);
    let started = fake.lock().started[0].clone();
    assert_eq!(started["Target"], NODE);
    assert_eq!(started["DocumentName"], document::SHELL);
    assert_eq!(started["Reason"], "test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_dropped_while_it_starts_is_ended_too() {
    let fake = FakeSsm::start(Plays::Silent).await;
    let ssm = fake.ssm();
    let starting = Session::start(&ssm, start(document::SHELL));
    let began = async {
        while fake.count("StartSession") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = starting => panic!("nobody answered"),
        () = began => {}
    }
    soon(ssm.settle()).await;
    assert_eq!(fake.count("TerminateSession"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_over_twenty_cuts() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    let session = soon(Session::start(&ssm, start(document::SHELL)))
        .await
        .unwrap();
    let (writer, mut reader) = session.split();
    let sent = pattern(2 << 20);
    let whole = Bytes::from(sent.clone());
    let writing = async {
        for chunk in whole.chunks(20_000) {
            let chunk = whole.slice_ref(chunk);
            writer.write(chunk).await.unwrap();
        }
        writer.settled().await.unwrap();
    };
    let reading = async {
        let (mut got, mut cuts) = (Vec::new(), 0);
        while got.len() < sent.len() + 2 {
            match reader.next_event().await {
                Some(Event::Data(bytes)) => got.extend_from_slice(&bytes),
                other => panic!("after {} bytes and {cuts} cuts: {other:?}", got.len()),
            }
            // One at a time: two at once would be one cut.
            let back = fake.count("ResumeSession") >= cuts;
            if got.len() > cuts * 50_000 && cuts < 20 && back {
                cuts += 1;
                fake.order(if cuts % 2 == 0 {
                    Order::Abort
                } else {
                    Order::Shut
                });
            }
        }
        got
    };
    let ((), got) = timeout(4 * SOON, async { tokio::join!(writing, reading) })
        .await
        .unwrap();
    assert!(got[2..] == sent[..], "what came back is what was sent");
    assert!(fake.count("ResumeSession") >= 10, "it was cut");
    soon(writer.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_told_to_be_away_and_back() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    let mut away = session.away();
    fake.lock().is_shut = true;
    fake.order(Order::Abort);
    let told = soon(away.wait_for(|away| away.since.is_some() && !away.why.is_empty())).await;
    drop(told.unwrap());
    session
        .write(Bytes::from_static(b"typed in the gap"))
        .await
        .unwrap();
    fake.lock().is_shut = false;
    drop(
        soon(away.wait_for(|away| away.since.is_none()))
            .await
            .unwrap(),
    );
    assert_eq!(read(&mut session, 16).await, b"typed in the gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_aws_does_not_resume_is_over_with_that_reason() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    fake.lock().is_over = true;
    fake.order(Order::Abort);
    match soon(session.next_event()).await {
        Some(Event::Ended(end)) => assert_eq!(end.why, Some(SsmError::Over)),
        other => panic!("{other:?}"),
    }
    assert!(soon(session.next_event()).await.is_none());
    assert!(session.write(Bytes::from_static(b"x")).await.is_err());
    soon(session.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_reason_is_the_persons() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    fake.order(Order::Close(
        "----------ERROR-------\nno such user".to_owned(),
    ));
    match soon(session.next_event()).await {
        Some(Event::Ended(end)) => assert_eq!(
            end.why.unwrap().to_string(),
            format!(
                "the session on {NODE} failed: the session ended: \
                 ----------ERROR-------\nno such user"
            )
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_end_in_between_are_renewed_and_nobody_is_asked() {
    let fake = FakeSsm::configured(
        Plays::Echo,
        "role_arn = arn:aws:iam::111122223333:role/operator\nsource_profile = alice\n",
    )
    .await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    let first = fake.lock().calls.last().unwrap().1.clone();
    fake.lock().expired.push(first.clone());
    fake.order(Order::Shut);
    // With another role session: the first attempt may be with the one that ended.
    let is_resumed = |(call, key): &(String, String)| call == "ResumeSession" && *key != first;
    soon(async {
        while !fake.lock().calls.last().is_some_and(is_resumed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    session.write(Bytes::from_static(b"on")).await.unwrap();
    assert_eq!(read(&mut session, 2).await, b"on");
    soon(session.end()).await.unwrap();
}
