#![expect(
    clippy::disallowed_methods,
    reason = "any instant will do to start from"
)]
use std::time::Duration;

use super::*;

fn pair(limits: Limits) -> (Mux, Mux, Instant) {
    let now = Instant::now();
    (
        Mux::new(Role::Client, limits, false, now),
        Mux::new(Role::Agent, limits, false, now),
        now,
    )
}

fn carry(from: &mut Mux, to: &mut Mux, now: Instant, limit: usize) {
    while from.has_output() && to.wants_data() {
        let mut out = Vec::new();
        from.poll_transmit(&mut out, limit);
        assert!(out.len() <= limit);
        to.handle_data(now, out.into()).unwrap();
    }
}

fn events(mux: &mut Mux) -> Vec<Event> {
    std::iter::from_fn(|| mux.poll_event()).collect()
}

fn read(mux: &mut Mux, id: StreamId) -> Vec<u8> {
    std::iter::from_fn(|| mux.read(id, 1000))
        .flatten()
        .collect()
}

#[test]
fn streams_open_carry_and_end() {
    let (mut client, mut agent, now) = pair(Limits::default());
    let (first, second) = (client.open().unwrap(), client.open().unwrap());
    assert_eq!((first, second), (StreamId(3), StreamId(5)));
    assert_eq!(client.write(first, b"one"), 3);
    assert_eq!(client.write(second, b"two"), 3);
    client.finish(second);
    carry(&mut client, &mut agent, now, 4096);
    assert_eq!(
        events(&mut agent),
        [
            Event::Opened(first),
            Event::Opened(second),
            Event::Readable(first),
            Event::Readable(second),
        ]
    );
    assert_eq!(read(&mut agent, first), b"one");
    assert_eq!(read(&mut agent, second), b"two");
    assert_eq!(events(&mut agent), [Event::Finished(second)]);
    assert_eq!(agent.write(second, b"late"), 0, "nobody would look at it");
    agent.finish(second);
    carry(&mut agent, &mut client, now, 4096);
    assert_eq!((client.len(), agent.len()), (1, 1));
    assert_eq!((agent.held, client.held), (0, 0));
}

#[test]
fn a_full_stream_takes_no_more_and_the_others_still_do() {
    let (mut client, _, _) = pair(Limits {
        send: 10,
        ..Limits::default()
    });
    let (first, second) = (client.open().unwrap(), client.open().unwrap());
    assert_eq!(client.write(first, &[0; 100]), 10);
    assert_eq!((client.room(first), client.room(second)), (0, 10));
}

#[test]
fn streams_take_turns() {
    let (mut client, mut agent, now) = pair(Limits::default());
    let (bulk, small) = (client.open().unwrap(), client.open().unwrap());
    client.write(bulk, &[b'b'; 200_000]);
    client.write(small, b"s");
    // The two SYN, one frame of the bulk, then it is the other's turn.
    let mut out = Vec::new();
    client.poll_transmit(&mut out, 2 * HEADER + HEADER + DATA_LIMIT + HEADER + 1);
    agent.handle_data(now, out.into()).unwrap();
    assert_eq!(read(&mut agent, small), b"s");
}

#[test]
fn unread_data_stops_the_channel_and_is_named() {
    let (mut client, mut agent, now) = pair(Limits {
        receive: 1000,
        ..Limits::default()
    });
    let (slow, quick) = (client.open().unwrap(), client.open().unwrap());
    client.write(slow, &[0; 5000]);
    carry(&mut client, &mut agent, now, 512);
    assert!(!agent.wants_data());
    assert!(agent.held < 1000 + 512);
    assert_eq!(agent.holds_up().unwrap().0, slow);
    client.write(quick, b"hello");
    assert_eq!(
        agent.handle_data(now, Bytes::from_static(b"x")),
        Err(MuxError::Unwanted)
    );
    agent.reset(slow);
    assert_eq!(agent.held, 0);
    assert_eq!(agent.holds_up(), None);
    carry(&mut client, &mut agent, now, 512);
    assert_eq!(read(&mut agent, quick), b"hello");
}

#[test]
fn readable_is_told_once_and_again_while_something_is_left() {
    let (mut client, mut agent, now) = pair(Limits::default());
    let id = client.open().unwrap();
    for _ in 0..3 {
        client.write(id, b"abcdef");
        carry(&mut client, &mut agent, now, 4096);
    }
    assert_eq!(events(&mut agent), [Event::Opened(id), Event::Readable(id)]);
    assert_eq!(agent.read(id, 4).unwrap(), "abcd");
    assert_eq!(events(&mut agent), [Event::Readable(id)]);
    assert_eq!(read(&mut agent, id).len(), 14);
}

#[test]
fn finished_comes_after_the_last_byte_was_read() {
    let (mut client, mut agent, now) = pair(Limits::default());
    let id = client.open().unwrap();
    client.write(id, b"bye");
    client.finish(id);
    assert_eq!(client.write(id, b"more"), 0);
    carry(&mut client, &mut agent, now, 4096);
    assert_eq!(events(&mut agent), [Event::Opened(id), Event::Readable(id)]);
    assert_eq!(read(&mut agent, id), b"bye");
    assert_eq!(events(&mut agent), [Event::Finished(id)]);
    assert!(client.is_empty());
}

#[test]
fn streams_beyond_the_limit_are_closed_at_once() {
    let limits = Limits {
        streams: 1,
        ..Limits::default()
    };
    let (mut client, mut agent, now) = pair(limits);
    client.open().unwrap();
    assert_eq!(client.open(), Err(MuxError::TooMany(1)));
    client.limits.streams = 2;
    let refused = client.open().unwrap();
    carry(&mut client, &mut agent, now, 4096);
    carry(&mut agent, &mut client, now, 4096);
    assert_eq!(events(&mut client), [Event::Finished(refused)]);
    let mut flood = Vec::new();
    for number in 0..=REFUSAL_LIMIT as u32 + 1 {
        frame::put_header(&mut flood, Command::Syn, 0, 100 + number);
    }
    assert_eq!(agent.handle_data(now, flood.into()), Err(MuxError::Flood));
    assert_eq!(agent.handle_data(now, Bytes::new()), Err(MuxError::Flood));
}

#[test]
fn a_client_accepts_no_streams_and_unknown_ones_are_silent() {
    let (mut client, _, now) = pair(Limits::default());
    let mut wire = Vec::new();
    frame::put_header(&mut wire, Command::Syn, 0, 2);
    frame::put_header(&mut wire, Command::Psh, 1, 9);
    wire.push(b'x');
    frame::put_header(&mut wire, Command::Fin, 0, 9);
    client.handle_data(now, wire.into()).unwrap();
    assert_eq!((events(&mut client).len(), client.held), (0, 0));
}

#[test]
fn keepalive_goes_out_every_ten_seconds_and_silence_ends_it() {
    let now = Instant::now();
    let mut mux = Mux::new(Role::Client, Limits::default(), true, now);
    let at = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(mux.poll_timeout(), Some(at(10)));
    mux.handle_timeout(at(10)).unwrap();
    let mut out = Vec::new();
    mux.poll_transmit(&mut out, 100);
    assert_eq!(out, [1, 3, 0, 0, 0, 0, 0, 0]);
    mux.handle_data(at(15), out.into()).unwrap();
    mux.handle_timeout(at(44)).unwrap();
    assert_eq!(mux.handle_timeout(at(45)), Err(MuxError::Silent));
    assert_eq!(mux.poll_timeout(), None);
    let quiet = Mux::new(Role::Client, Limits::default(), false, now);
    assert_eq!(quiet.poll_timeout(), None, "idle without keepalive");
}

#[test]
fn stream_ids_end_without_wrapping() {
    let (mut client, _, _) = pair(Limits::default());
    client.next_stream = Some(u32::MAX);
    assert_eq!(client.open(), Ok(StreamId(u32::MAX)));
    assert_eq!(client.open(), Err(MuxError::Exhausted));
}

#[test]
fn what_arrives_for_a_closed_stream_is_dropped() {
    let (mut client, mut agent, now) = pair(Limits::default());
    let (ended, dying) = (client.open().unwrap(), client.open().unwrap());
    carry(&mut client, &mut agent, now, 4096);
    // Closed here, before the FIN went out.
    agent.finish(dying);
    let mut wire = Vec::new();
    for id in [ended, dying] {
        frame::put_header(
            &mut wire,
            Command::Fin,
            0,
            if id == ended { id.0 } else { 99 },
        );
        frame::put_header(&mut wire, Command::Psh, 4, id.0);
        wire.extend_from_slice(b"late");
    }
    agent.handle_data(now, wire.into()).unwrap();
    assert_eq!(agent.held, 0, "or the budget would shrink for good");
    assert_eq!((agent.read(ended, 10), agent.read(dying, 10)), (None, None));
}
