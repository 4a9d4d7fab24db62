//! What the two ends say: by the protocol, unless they lie.

use bytes::Bytes;
use postern_proto::wire::Writer;

use super::peer::{
    CLASSES, Channel, PROGRAM, SFTP, STREAM, confirmation, data, open, request, stamped,
};
use super::world::{Said, USER, World};
use crate::ssh::message;

impl World {
    /// Puts a message into the book and sends it.
    fn say(&mut self, end: usize, message: Bytes, must: bool, stamp: Option<u32>, tag: u32) {
        self.hand(end, &message);
        let must = must && self.honest;
        self.books[end].say(Said {
            message,
            must,
            stamp,
            tag,
        });
    }

    /// What overtakes stands in a book of its own.
    fn hand(&mut self, end: usize, message: &[u8]) {
        let sent = self.peers[end].transport.send(message);
        sent.expect("an end can always send");
    }

    /// An end's channel that it may say something on, and its number at the other end.
    fn channel(&mut self, end: usize, at: usize) -> Option<(u32, u32, &mut Channel)> {
        let channels = &mut self.peers[end].channels;
        let at = at % channels.len().max(1);
        let (id, channel) = channels.iter_mut().nth(at)?;
        let remote = channel.remote.filter(|_| !channel.sent_close)?;
        Some((*id, remote, channel))
    }

    fn stamp(&mut self, end: usize) -> u32 {
        self.stamps[end] += 1;
        self.stamps[end]
    }

    fn tag(&mut self) -> u32 {
        self.tags += 1;
        self.tags
    }

    pub(super) fn opens(&mut self, end: usize, at: usize, a: u8, b: u8) {
        let port = u32::from(b);
        let (kind, class, port, must) = match (end, a % 8) {
            (USER, 0..=3) => ("session", PROGRAM, None, true),
            (USER, 4) => ("session", SFTP, None, true),
            (USER, 5 | 6) => ("direct-tcpip", STREAM, Some(port), port % 2 == 0),
            (USER, _) => ("direct-streamlocal@openssh.com", STREAM, None, false),
            (_, 0..=3) => {
                let mut known: Vec<_> = self.listeners.iter().copied().collect();
                known.sort_unstable();
                let port = known.get(at % known.len().max(1)).copied().unwrap_or(port);
                ("forwarded-tcpip", STREAM, Some(port), false)
            }
            (_, 4 | 5) => ("auth-agent@openssh.com", STREAM, None, false),
            (_, 6) => ("x11", STREAM, None, false),
            _ => ("session", STREAM, None, false),
        };
        let window = if b & 0x80 == 0 { 2 << 20 } else { 200 };
        let peer = &mut self.peers[end];
        let id = peer.free(class);
        let channel = Channel {
            takes: window.into(),
            ..Channel::default()
        };
        peer.channels.insert(id, channel);
        let message = open(kind, id, window, port);
        self.hand(end, &message);
        let must = must && self.honest;
        self.books[end].openings.push((message, must));
    }

    /// The oldest opening that waits for this end.
    pub(super) fn answers_opening(&mut self, end: usize, a: u8, b: u8) {
        let peer = &mut self.peers[end];
        let Some((sender, may_send)) = peer.asked_to_open.pop_front() else {
            return;
        };
        let message: Bytes = if a & 7 == 7 {
            message::open_failure(sender, 2, "nobody there").into()
        } else {
            let (id, takes) = (peer.free(sender % CLASSES), u32::from(b) << 13);
            let channel = Channel {
                remote: Some(sender),
                may_send: may_send.into(),
                takes: takes.into(),
                ..Channel::default()
            };
            peer.channels.insert(id, channel);
            confirmation(sender, id, takes)
        };
        self.hand(end, &message);
        self.books[end].answers.push(message);
    }

    pub(super) fn sends(&mut self, end: usize, at: usize, error: bool, length: usize) {
        let Some((id, remote, channel)) = self.channel(end, at) else {
            return;
        };
        let length = length.clamp(crate::agent::STAMP, 32 * 1024 - 64);
        let fits = channel.may_send >= length as u64;
        if id % CLASSES == SFTP || channel.sent_eof || !fits {
            return;
        }
        channel.may_send -= length as u64;
        let must = id % CLASSES == STREAM || channel.started;
        let stamp = self.stamp(end);
        let kind = match error {
            true => message::CHANNEL_EXTENDED_DATA,
            false => message::CHANNEL_DATA,
        };
        let message = data(kind, remote, &stamped(stamp, remote, length));
        self.say(end, message, must, Some(stamp), 0);
    }

    /// Any bytes, where SFTP is spoken.
    pub(super) fn sends_piece(&mut self, end: usize, at: usize, piece: &[u8]) {
        let Some((id, remote, channel)) = self.channel(end, at) else {
            return;
        };
        let fits = channel.may_send >= piece.len() as u64;
        if id % CLASSES != SFTP || !channel.started || channel.sent_eof || !fits {
            return;
        }
        channel.may_send -= piece.len() as u64;
        let message = data(message::CHANNEL_DATA, remote, piece);
        self.say(end, message, true, None, 0);
    }

    pub(super) fn widens(&mut self, end: usize, at: usize, more: u16) {
        let Some((id, remote, channel)) = self.channel(end, at) else {
            return;
        };
        channel.takes += u64::from(more);
        let must = id % CLASSES == STREAM || end != USER;
        let message = Writer::new()
            .u8(message::CHANNEL_WINDOW_ADJUST)
            .u32(remote)
            .u32(more.into())
            .finish();
        self.say(end, message.into(), must, None, 0);
    }

    /// Ends the data, or the channel.
    pub(super) fn closes(&mut self, end: usize, at: usize, all: bool) {
        let Some((id, remote, channel)) = self.channel(end, at) else {
            return;
        };
        if !all && channel.sent_eof {
            return;
        }
        channel.sent_eof = true;
        channel.sent_close = all;
        let over = all && channel.got_close;
        let kind = match all {
            true => message::CHANNEL_CLOSE,
            false => message::CHANNEL_EOF,
        };
        if over {
            self.peers[end].channels.remove(&id);
        }
        self.say(end, message::plain(kind, remote).into(), true, None, 0);
    }

    pub(super) fn asks(&mut self, end: usize, at: usize, a: u8, want: bool) {
        let tag = self.tag();
        let stamp = self.stamps[end] + 1;
        let Some((id, remote, channel)) = self.channel(end, at) else {
            return;
        };
        let is_stream = id % CLASSES == STREAM;
        let text = |text: &str| Writer::new().vec32(text.as_bytes()).finish();
        let size = Writer::new().u32(stamp).u32(24).u32(0).u32(0).finish();
        // What is said there has no stamps, whatever runs.
        let run = if id % CLASSES == SFTP { "sftp" } else { "run" };
        let mut recorded = false;
        let (name, fields, must, want) = if end == USER {
            let (name, fields, must) = match a % 16 {
                0 | 1 if id % CLASSES == SFTP && !channel.once => {
                    channel.once = true;
                    ("subsystem", text("sftp"), false)
                }
                0 if !channel.once => {
                    channel.once = true;
                    ("shell", vec![], false)
                }
                0..=2 => ("exec", text(&format!("{run} {tag}")), false),
                3 => ("exec", text(&format!("deny {tag}")), false),
                4 => ("subsystem", text(&format!("{run} {tag}")), false),
                5 => ("subsystem", text(&format!("deny {tag}")), false),
                6 | 7 => {
                    channel.terminal |= !channel.wanted;
                    let fields = [text(&format!("t{tag}")), size, text("")].concat();
                    ("pty-req", fields, true)
                }
                8 => ("env", [text(&format!("N{tag}")), text("1")].concat(), true),
                9 | 10 => {
                    recorded = channel.started && channel.terminal;
                    ("window-change", size, true)
                }
                11 => ("signal", text("TERM"), true),
                12 => ("auth-agent-req@openssh.com", text(&tag.to_string()), false),
                13 => ("x11-req", text(&tag.to_string()), false),
                14 => ("keepalive@openssh.com", vec![], true),
                _ => ("tun@example.com", text(&tag.to_string()), false),
            };
            let starts = matches!(name, "shell" | "exec" | "subsystem");
            channel.wanted |= starts;
            (
                name,
                fields,
                must && (!is_stream || name.starts_with("keep")),
                want,
            )
        } else {
            // RFC 4254 wants no replies to what a target says but to what nobody knows.
            match a % 8 {
                0..=2 if !is_stream => {
                    recorded = channel.started;
                    (
                        "exit-status",
                        Writer::new().u32(stamp).finish(),
                        true,
                        false,
                    )
                }
                3 if !is_stream => ("exit-signal", text("KILL"), true, false),
                4 => ("xon-xoff", vec![1], true, false),
                5 => ("eow@openssh.com", vec![], true, false),
                6 => ("keepalive@openssh.com", vec![], false, want),
                _ => ("tun@example.com", vec![], false, want),
            }
        };
        if want {
            channel.asked.push_back(tag);
        }
        if recorded || name == "window-change" || name == "exit-status" {
            self.stamps[end] = stamp;
        }
        if matches!(name, "shell" | "exec" | "subsystem") {
            self.starts.insert(tag, id);
        }
        let message = request(Some(remote), name, want, &fields);
        self.say(end, message, must, recorded.then_some(stamp), tag);
    }

    /// Answers the oldest request of a channel.
    pub(super) fn replies(&mut self, end: usize, at: usize, success: bool) {
        let Some((_, remote, channel)) = self.channel(end, at) else {
            return;
        };
        let Some(asked) = channel.to_answer.pop_front() else {
            return;
        };
        channel.started &= success || !asked.special;
        self.fates.insert(asked.tag, Some(success));
        let kind = match success {
            true => message::CHANNEL_SUCCESS,
            false => message::CHANNEL_FAILURE,
        };
        self.hand(end, &message::plain(kind, remote));
    }

    /// A global request.
    pub(super) fn asks_all(&mut self, end: usize, a: u8, b: u8) {
        let tag = self.tag();
        let want = b & 1 == 1;
        let at = |port: u32| {
            Writer::new()
                .vec32(tag.to_string().as_bytes())
                .u32(port)
                .finish()
        };
        let any = tag.to_be_bytes().to_vec();
        let (name, fields, must) = match a % 8 {
            _ if end != USER => ("hostkeys-00@openssh.com", any, false),
            0 => ("keepalive@openssh.com", any, true),
            1 => ("no-more-sessions@openssh.com", any, true),
            2 => ("tcpip-forward", at(0), false),
            3 | 4 => ("tcpip-forward", at(u32::from(b >> 1)), false),
            5 => ("tcpip-forward", at(u32::from(b) << 16), false),
            6 => ("cancel-tcpip-forward", at(u32::from(b >> 1)), true),
            _ => ("streamlocal-forward@openssh.com", any, false),
        };
        if want {
            self.peers[end].asked.push_back(tag);
        }
        let message = request(None, name, want, &fields);
        self.say(end, message, must, None, tag);
    }

    /// Answers the oldest global request.
    pub(super) fn replies_to_all(&mut self, end: usize, success: bool, b: u8) {
        let Some(asked) = self.peers[end].to_answer.pop_front() else {
            return;
        };
        self.fates.insert(asked.tag, Some(success));
        let message = match (success, asked.special) {
            (true, true) => {
                let port = 40_000 + u32::from(b) * 2;
                self.listeners.insert(port);
                Writer::new()
                    .u8(message::REQUEST_SUCCESS)
                    .u32(port)
                    .finish()
            }
            (true, false) => vec![message::REQUEST_SUCCESS],
            (false, _) => vec![message::REQUEST_FAILURE],
        };
        self.hand(end, &message);
    }

    /// Both ends answer the oldest of what they were asked. Whether there was something.
    pub(super) fn answers_something(&mut self) -> bool {
        for end in [0, 1] {
            if !self.peers[end].asked_to_open.is_empty() {
                self.answers_opening(end, 0, 1);
                return true;
            }
            if !self.peers[end].to_answer.is_empty() {
                self.replies_to_all(end, true, 0);
                return true;
            }
            for at in 0..self.peers[end].channels.len() {
                let asked = self.channel(end, at);
                if asked.is_some_and(|(_, _, channel)| !channel.to_answer.is_empty()) {
                    self.replies(end, at, true);
                    return true;
                }
            }
        }
        false
    }

    /// Something that the protocol has no place for, or that has its form only.
    pub(super) fn lies(&mut self, end: usize, at: usize, a: u8, piece: &[u8]) {
        self.honest = false;
        self.books.iter_mut().for_each(super::world::Book::forgive);
        let id = u32::try_from(at % 16).expect("small");
        match a % 16 {
            0 | 1 => {
                let stamp = self.stamp(end);
                let kind = message::CHANNEL_DATA + (a >> 4 & 1);
                let message = data(kind, id, &stamped(stamp, id, piece.len()));
                self.say(end, message, false, Some(stamp), 0);
            }
            2 => self.lie(end, message::plain(message::CHANNEL_EOF, id)),
            3 => self.lie(end, message::plain(message::CHANNEL_CLOSE, id)),
            4 => self.lie(end, message::plain(message::CHANNEL_SUCCESS, id)),
            5 => self.lie(end, message::plain(message::CHANNEL_FAILURE, id)),
            6 => {
                // Under a number of the same class, taken or not.
                let sender = id % CLASSES + u32::from(a >> 6) * CLASSES;
                let message = confirmation(id, sender, 1 << 20);
                self.hand(end, &message);
                self.books[end].answers.push(message);
            }
            7 => self.lie(end, message::open_failure(id, 1, "no")),
            8 => self.lie(end, vec![message::REQUEST_SUCCESS, 0, 0, 0, 1]),
            9 => self.lie(end, vec![message::REQUEST_FAILURE]),
            10 => {
                let names = [
                    "exit-status",
                    "window-change",
                    "pty-req",
                    "exec",
                    "xon-xoff",
                ];
                let name = names[piece.len() % names.len()];
                let message = request(Some(id), name, a & 0x80 != 0, piece);
                self.lie(end, message.to_vec());
            }
            11 => {
                let kinds = ["session", "direct-tcpip", "forwarded-tcpip"];
                let kind = kinds[usize::from(a >> 4) % kinds.len()];
                let id = id / CLASSES * CLASSES + u32::from(kind != "session");
                let port = (kind != "session").then_some(2);
                let message = open(kind, id, u32::MAX, port);
                self.hand(end, &message);
                self.books[end].openings.push((message, false));
            }
            _ => self.lie(end, piece.to_vec()),
        }
    }

    fn lie(&mut self, end: usize, message: Vec<u8>) {
        // What would make a channel of another class, or content without a stamp, proves nothing.
        let taken = matches!(
            message.first(),
            None | Some(0..=49)
                | Some(
                    &(message::CHANNEL_OPEN
                        | message::CHANNEL_OPEN_CONFIRMATION
                        | message::CHANNEL_DATA
                        | message::CHANNEL_EXTENDED_DATA)
                )
        );
        if taken || message.windows(4).any(|part| part == b"sftp") {
            return;
        }
        self.say(end, message.into(), false, None, 0);
    }
}
