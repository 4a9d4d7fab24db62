//! What arrives at an end is checked: it was said, it was allowed, and it was recorded.

use bytes::Bytes;
use postern_proto::wire::Reader;

use super::peer::{Asked, CLASSES, Channel, PROGRAM, SFTP, STREAM};
use super::world::{TARGET, USER, World};
use crate::ssh::message::{self, Request};

impl World {
    /// A message that the relay passed to `end`, or made for it.
    pub(super) fn arrives(&mut self, end: usize, message: Bytes) {
        let kind = message[0];
        match kind {
            message::CHANNEL_OPEN => self.opening_arrives(end, &message),
            message::CHANNEL_OPEN_CONFIRMATION | message::CHANNEL_OPEN_FAILURE => {
                self.answer_arrives(end, &message);
            }
            message::CHANNEL_DATA | message::CHANNEL_EXTENDED_DATA => {
                self.data_arrives(end, &message);
            }
            message::CHANNEL_WINDOW_ADJUST | message::CHANNEL_EOF | message::CHANNEL_CLOSE => {
                self.mark_arrives(end, &message);
            }
            message::CHANNEL_REQUEST => self.request_arrives(end, &message),
            message::CHANNEL_SUCCESS | message::CHANNEL_FAILURE => {
                let (id, _) = message::recipient(&message).expect("well formed");
                let channel = self.peers[end].channels.get_mut(&id);
                let asked = channel.and_then(|channel| channel.asked.pop_front());
                self.reply_arrives(end, asked, kind == message::CHANNEL_SUCCESS);
            }
            message::GLOBAL_REQUEST => self.global_arrives(end, &message),
            message::REQUEST_SUCCESS | message::REQUEST_FAILURE => {
                assert!(end == USER || kind == message::REQUEST_FAILURE);
                let asked = self.peers[end].asked.pop_front();
                self.reply_arrives(end, asked, kind == message::REQUEST_SUCCESS);
            }
            _ => panic!("message {kind} passes"),
        }
    }

    fn opening_arrives(&mut self, end: usize, message: &Bytes) {
        let openings = &mut self.books[1 - end].openings;
        let open = message::Open::parse(message).expect("well formed");
        // The relay may keep some of the window.
        let at = openings.iter().position(|(said, _)| {
            let said = message::Open::parse(said).expect("well formed");
            let (ours, theirs) = ((&said.kind, said.sender), (&open.kind, open.sender));
            ours == theirs && said.destination == open.destination && said.window >= open.window
        });
        openings.swap_remove(at.expect("an opening that nobody said, or twice"));
        let port = open.destination.map(|(_, port)| port);
        match (end, open.kind.as_str(), port) {
            (TARGET, "session", _) => {}
            (TARGET, "direct-tcpip", Some(port)) => assert!(port % 2 == 0 && port < 65_536),
            (USER, "forwarded-tcpip", Some(port)) => {
                assert!(port % 2 == 0 && self.listeners.contains(&port));
            }
            (USER, "auth-agent@openssh.com", _) => assert!(self.agent && self.agent_lent),
            (_, kind, _) => panic!("a channel `{kind}` reaches {end}"),
        }
        let asked = (open.sender, open.window);
        self.peers[end].asked_to_open.push_back(asked);
    }

    fn answer_arrives(&mut self, end: usize, message: &Bytes) {
        let answers = &mut self.books[1 - end].answers;
        let said = answers.iter().position(|said| said == message);
        let said = said.map(|at| answers.swap_remove(at));
        let (id, mut reader) = message::recipient(message).expect("well formed");
        let peer = &mut self.peers[end];
        if message[0] == message::CHANNEL_OPEN_FAILURE {
            assert!(!self.honest || peer.channels.contains_key(&id));
            peer.channels.remove(&id);
            return;
        }
        assert!(said.is_some(), "a confirmation that nobody said");
        let sender = reader.u32("sender").expect("well formed");
        let window = reader.u32("window").expect("well formed");
        match peer.channels.get_mut(&id) {
            Some(channel) if channel.remote.is_none() => {
                channel.remote = Some(sender);
                channel.may_send = window.into();
            }
            _ => assert!(!self.honest, "a confirmation of nothing"),
        }
    }

    fn data_arrives(&mut self, end: usize, message: &Bytes) {
        let (id, mut reader) = message::recipient(message).expect("well formed");
        let is_error = message[0] == message::CHANNEL_EXTENDED_DATA;
        if is_error {
            reader.u32("type").expect("well formed");
        }
        let content = message::data(message, reader).expect("well formed");
        let length = content.len() as u64;
        if self.honest {
            let channel = self.peers[end].channels.get_mut(&id);
            let channel = channel.expect("data on a channel that is not open");
            assert!(!channel.got_close && channel.remote.is_some());
            assert!(channel.takes >= length, "the window is exceeded");
            channel.takes -= length;
        }
        // The relay's own words.
        let words = content.strip_prefix(b"\r\n").unwrap_or(&content);
        if end == USER && is_error && words.starts_with(b"postern: ") {
            return;
        }
        if let Some(channel) = self.peers[end].channels.get(&id) {
            assert!(!self.honest || !channel.got_eof, "data after its end");
        }
        let way = 1 - end;
        let Some(said) = self.books[way].strike(message) else {
            panic!("data on {id} at {end}: never said, twice, or what came before it is lost");
        };
        if let (PROGRAM, Some(stamp)) = (id % CLASSES, said.stamp) {
            assert!(self.desk.is_landed(way, stamp), "passed before it landed");
        }
        self.arrived[way] += length;
        // Streams are counted now and then: the sum is checked in the end.
        if id % CLASSES == STREAM {
            self.streamed += length;
        }
    }

    /// Windows, ends and closes.
    fn mark_arrives(&mut self, end: usize, message: &Bytes) {
        let (id, mut reader) = message::recipient(message).expect("well formed");
        let kind = message[0];
        if self.books[1 - end].strike(message).is_none() {
            // The last words to a shell are followed by its end.
            let own = end == USER && self.ending && kind != message::CHANNEL_WINDOW_ADJUST;
            assert!(own, "{kind} on {id} at {end}: out of order");
        }
        let peer = &mut self.peers[end];
        let Some(channel) = peer.channels.get_mut(&id) else {
            assert!(!self.honest, "{kind} on {id} at {end}: not open");
            return;
        };
        match kind {
            message::CHANNEL_WINDOW_ADJUST => {
                channel.may_send += u64::from(reader.u32("bytes").expect("well formed"));
            }
            message::CHANNEL_EOF => channel.got_eof = true,
            _ => {
                channel.got_close = true;
                if channel.sent_close {
                    peer.channels.remove(&id);
                }
            }
        }
    }

    fn request_arrives(&mut self, end: usize, message: &Bytes) {
        let (id, reader) = message::recipient(message).expect("well formed");
        let said = self.books[1 - end].strike(message);
        let said = said.expect("a request that nobody said, or out of order");
        let request = Request::parse(reader).expect("well formed");
        if let Some(stamp) = said.stamp {
            assert!(self.desk.is_landed(1 - end, stamp), "not recorded first");
        }
        let name = String::from_utf8_lossy(request.name).into_owned();
        let starts = matches!(name.as_str(), "shell" | "exec" | "subsystem");
        if end == USER {
            let harmless = ["exit-status", "exit-signal", "xon-xoff", "eow@openssh.com"];
            assert!(harmless.contains(&name.as_str()), "`{name}` reaches a user");
            return;
        }
        let mut fields = request.fields;
        let text = message::text_field(&mut fields).unwrap_or_default();
        let may = match name.as_str() {
            "eow@openssh.com" | "keepalive@openssh.com" => true,
            _ if id % CLASSES == STREAM => false,
            "exec" => !text.starts_with("deny"),
            "subsystem" => !text.starts_with("deny") && (text != "sftp" || id % CLASSES == SFTP),
            "auth-agent-req@openssh.com" => self.agent,
            "shell" | "pty-req" | "window-change" | "env" | "signal" | "break" => true,
            _ => false,
        };
        assert!(may, "`{name}` reaches the target");
        self.agent_lent |= name.starts_with("auth-agent");
        self.fates.insert(said.tag, None);
        let channel: Option<&mut Channel> = self.peers[TARGET].channels.get_mut(&id);
        if let Some(channel) = channel {
            channel.started |= starts;
            if request.want_reply {
                let (tag, special) = (said.tag, starts);
                channel.to_answer.push_back(Asked { tag, special });
            }
        }
    }

    fn global_arrives(&mut self, end: usize, message: &Bytes) {
        assert_eq!(end, TARGET, "a global request reaches the user");
        let said = self.books[USER].strike(message);
        let said = said.expect("a request that nobody said, or out of order");
        let mut reader = Reader::new(message);
        reader.u8("message").expect("well formed");
        let mut request = Request::parse(reader).expect("well formed");
        let mut special = false;
        match request.name {
            b"keepalive@openssh.com" | b"no-more-sessions@openssh.com" => {}
            b"cancel-tcpip-forward" => {}
            b"tcpip-forward" => {
                message::text_field(&mut request.fields).expect("well formed");
                let port = request.fields.u32("port").expect("well formed");
                assert!(port % 2 == 0 && port < 65_536, "a listener on {port}");
                self.listeners.insert(port);
                special = port == 0;
            }
            name => panic!("`{}` reaches the target", name.escape_ascii()),
        }
        self.fates.insert(said.tag, None);
        if request.want_reply {
            let tag = said.tag;
            self.peers[TARGET]
                .to_answer
                .push_back(Asked { tag, special });
        }
    }

    /// A reply to the oldest request, `asked`: the target's own, or a refusal of what never
    /// arrived there.
    fn reply_arrives(&mut self, end: usize, asked: Option<u32>, success: bool) {
        if !self.honest {
            return;
        }
        let tag = asked.expect("a reply to nothing");
        match self.fates.get(&tag) {
            Some(Some(answer)) => assert_eq!(*answer, success, "not the target's answer"),
            Some(None) => panic!("answered before the target did"),
            None => assert!(!success, "nobody granted that"),
        }
        if let (USER, true, Some(id)) = (end, success, self.starts.remove(&tag)) {
            if let Some(channel) = self.peers[USER].channels.get_mut(&id) {
                channel.started = true;
            }
        }
    }
}
