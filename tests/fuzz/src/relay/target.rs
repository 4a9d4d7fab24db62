//! The agent's SSH relay as a whole, between a user and a target that are held by hand: what they
//! say, what is decided and what lands in a recording comes in any order.

mod arrivals;
mod peer;
mod says;
mod world;

use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::message::CloseReason;

use super::link::Link;
use super::relay;
use super::targets::{carry, client, server};
use super::transport::Transport;
use crate::agent::Desk;
use crate::agent::session::{Ending, Session};

use peer::Peer;
use world::{TARGET, USER, World};

/// Operations of both ends, of policy and of the evidence.
pub(crate) fn ssh_relay(input: &[u8]) {
    let Some((mode, script)) = input.split_first() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    // Nothing here shares the thread, and a budget would look like a pause of the ends.
    runtime.block_on(tokio::task::unconstrained(run(*mode, script)));
}

async fn run(mode: u8, mut script: &[u8]) {
    let mut world = world(mode);
    while let Some((&[kind, who, a, b], rest)) = script.split_first_chunk() {
        script = rest;
        let (end, at) = (usize::from(who >> 7), usize::from(who & 0x7f));
        match kind % 32 {
            0 => world.opens(end, at, a, b),
            1 => world.answers_opening(end, a, b),
            2..=4 => world.sends(end, at, false, u16::from_be_bytes([a, b]).into()),
            5 => world.sends(end, at, true, u16::from_be_bytes([a, b]).into()),
            6 => world.widens(end, at, u16::from_be_bytes([a, b])),
            7..=9 => world.asks(end, at, a, b & 1 == 1),
            10 | 11 => world.replies(end, at, a & 1 == 1),
            12 => world.closes(end, at, false),
            13 => world.closes(end, at, true),
            14 => world.asks_all(end, a, b),
            15 => world.replies_to_all(end, a & 1 == 1, b),
            16 | 17 => {
                world.ending |= b == 0xff;
                world.desk.settle(a.into(), b != 0xff);
            }
            18 => world.desk.settle_all(a & 1 == 1),
            19 => world.desk.hold(),
            20 => world.peers[end].reads = a & 1 == 1,
            21 => tokio::time::advance(Duration::from_millis(u64::from(a) * 20)).await,
            22 => drop(world.session.words.send_replace(Some("soon".into()))),
            23 => {
                world.ending = true;
                let order = Ending {
                    reason: CloseReason::Policy,
                    message: (a & 1 == 1).then(|| "the time is over".to_owned()),
                };
                world.session.orders.send_replace(Some(order));
            }
            24 => (0..40).for_each(|_| world.sends(end, at, a & 1 == 1, 32_000)),
            25 | 26 => {
                let (piece, rest) = script.split_at(script.len().min(a.into()));
                script = rest;
                world.sends_piece(end, at, piece);
            }
            27 | 28 => {
                let (piece, rest) = script.split_at(script.len().min((b >> 2).into()));
                script = rest;
                world.lies(end, at, a, piece);
            }
            29 => {
                // With what it said still on its way: that arrives.
                world.ending = true;
                world.peers[end].stream = None;
            }
            _ => {}
        }
        world.settle().await;
        if world.end.is_some() {
            break;
        }
    }
    conclude(world, mode).await;
}

fn world(mode: u8) -> World {
    let (agent, once) = (mode & 1 == 1, mode & 2 == 2);
    let capacity = if mode & 4 == 4 { 4 * 1024 } else { 256 * 1024 };
    let desk = Desk::new(agent, mode & 8 == 8);
    let session = Arc::new(Session::new(Arc::clone(&desk)));
    let (user, users) = connected(client(), server());
    let (target, targets) = connected(server(), client());
    let (user_stream, users_stream) = tokio::io::duplex(capacity);
    let (target_stream, targets_stream) = tokio::io::duplex(capacity);
    let relay = relay::run(
        Link::new(users_stream, users),
        Link::new(targets_stream, targets),
        Arc::clone(&session),
        once,
    );
    let peers = [
        Peer::new(user, user_stream),
        Peer::new(target, target_stream),
    ];
    World::new(peers, desk, session, relay, (agent, once), capacity)
}

/// Keys are exchanged, and both are authenticated.
fn connected(mut one: Transport, mut other: Transport) -> (Transport, Transport) {
    while carry(&mut one, &mut other) | carry(&mut other, &mut one) {
        for end in [&mut one, &mut other] {
            assert_eq!(end.next(), Ok(None));
        }
    }
    one.authenticated();
    other.authenticated();
    (one, other)
}

/// Both ends take what there is and answer what they were asked; then the user leaves.
async fn conclude(mut world: World, mode: u8) {
    for end in [USER, TARGET] {
        world.peers[end].reads = true;
    }
    let stalled = mode & 16 == 16;
    if !stalled {
        world.desk.settle_all(true);
    }
    world.settle().await;
    if world.end.is_none() && !stalled && !world.ending && world.honest {
        while world.answers_something() {
            world.settle().await;
        }
    }
    if world.end.is_none() && !stalled && !world.ending && world.honest {
        for book in &world.books {
            assert_eq!(book.missing(), None, "it never arrived");
        }
        let user = &world.peers[USER];
        for channel in user.channels.values() {
            let target = &world.peers[TARGET].channels;
            let promised = channel.remote.and_then(|remote| target.get(&remote));
            let promised = promised.map_or(0, |channel| channel.may_send);
            assert!(promised <= channel.takes, "more is promised than is taken");
        }
        // Who closes a channel answers nothing more in it.
        let open = user.channels.values().filter(|channel| !channel.got_close);
        let unanswered = open.map(|channel| channel.asked.len());
        assert_eq!(unanswered.sum::<usize>() + user.asked.len(), 0);
        assert!(
            user.channels
                .values()
                .all(|channel| channel.remote.is_some())
        );
    }
    world.ending = true;
    world.peers[USER].stream = None;
    world.run_out().await;
    let Some(end) = world.end.take() else { return };
    assert!(end.up >= world.arrived[USER] && end.down >= world.arrived[TARGET]);
    if world.once && end.reason == CloseReason::Done && world.honest {
        assert_eq!(world.books[TARGET].missing(), None, "it ended too early");
    }
    // A store that is too slow for the deadlines is one that failed.
    if !stalled && !world.desk.failed() && end.reason != CloseReason::Evidence {
        assert!(world.desk.all_closed(), "a recording is open after {end:?}");
        assert!(
            world.desk.flow() >= world.streamed,
            "bytes of a stream are not recorded"
        );
    }
}
