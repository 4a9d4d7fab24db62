#![expect(
    clippy::disallowed_methods,
    reason = "any instant will do to start from"
)]

use super::*;

fn frame(number: u8) -> Bytes {
    Bytes::from(vec![number; 100])
}

fn filled(count: u8) -> (SendQueue, Instant) {
    let (mut queue, now) = (SendQueue::new(Limits::default()), Instant::now());
    for number in 0..count {
        queue.push(frame(number));
    }
    (queue, now)
}

fn drain(queue: &mut SendQueue, now: Instant) -> Vec<u8> {
    std::iter::from_fn(|| queue.poll_transmit(now))
        .map(|frame| frame[0])
        .collect()
}

#[test]
fn each_message_goes_out_once_and_only_the_oldest_again() {
    let (mut queue, now) = filled(5);
    assert_eq!(drain(&mut queue, now), [0, 1, 2, 3, 4]);
    let due = queue.poll_timeout().unwrap();
    assert_eq!(due, now + Duration::from_millis(200));
    assert_eq!(drain(&mut queue, due - Duration::from_millis(1)), [0; 0]);
    assert_eq!(drain(&mut queue, due), [0]);
    assert_eq!(queue.poll_timeout(), Some(due + Duration::from_millis(400)));
}

#[test]
fn three_later_acknowledgements_bring_a_message_back_at_once() {
    let (mut queue, now) = filled(6);
    drain(&mut queue, now);
    let soon = now + Duration::from_millis(5);
    for number in [1, 2] {
        queue.acknowledge(number, soon).unwrap();
        assert_eq!(drain(&mut queue, soon), [0; 0], "that may be reordering");
    }
    queue.acknowledge(3, soon).unwrap();
    assert_eq!(drain(&mut queue, soon), [0]);
    assert_eq!(drain(&mut queue, soon), [0; 0], "once for each loss");
}

#[test]
fn a_lost_tail_comes_back_after_one_probe() {
    let (mut queue, now) = filled(20);
    drain(&mut queue, now);
    let due = queue.poll_timeout().unwrap();
    assert_eq!(drain(&mut queue, due), [0]);
    queue
        .acknowledge(0, due + Duration::from_millis(100))
        .unwrap();
    let again = due + Duration::from_millis(100);
    let most: Vec<u8> = (1..18).collect();
    assert_eq!(drain(&mut queue, again), most);
    queue
        .acknowledge(1, again + Duration::from_millis(100))
        .unwrap();
    queue
        .acknowledge(2, again + Duration::from_millis(100))
        .unwrap();
    assert_eq!(
        drain(&mut queue, again + Duration::from_millis(100)),
        [18, 19]
    );
}

#[test]
fn a_late_answer_to_the_first_copy_is_no_sign_of_loss() {
    let (mut queue, now) = filled(20);
    drain(&mut queue, now);
    let due = queue.poll_timeout().unwrap();
    assert_eq!(drain(&mut queue, due), [0]);
    let late = due + Duration::from_millis(5);
    queue.acknowledge(0, late).unwrap();
    assert_eq!(drain(&mut queue, late), [0; 0]);
}

#[test]
fn after_a_reconnect_all_goes_out_again_oldest_first() {
    let (mut queue, now) = filled(5);
    drain(&mut queue, now);
    queue.acknowledge(2, now).unwrap();
    queue.handle_disconnected();
    queue.push(frame(5));
    queue.resend_all();
    assert_eq!(drain(&mut queue, now), [0, 1, 3, 4, 5]);
}

#[test]
fn a_full_queue_has_no_room_and_forgets_nothing() {
    let limits = Limits {
        least_window: 1000,
        greatest_window: 1500,
        ..Limits::default()
    };
    let (mut queue, now) = (SendQueue::new(limits), Instant::now());
    for number in 0..10 {
        queue.push(frame(number));
    }
    assert_eq!(queue.room(), 0);
    drain(&mut queue, now);
    queue.acknowledge(9, now).unwrap();
    assert_eq!(
        queue.room(),
        100,
        "the window grew; the peer still holds number 9"
    );
    queue.acknowledge(0, now).unwrap();
    assert_eq!(queue.room(), 300);
    queue.handle_disconnected();
    assert_eq!(queue.window(), 1000);
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_is_an_error() {
    let (mut queue, now) = filled(2);
    let error = |acknowledged, sent| Err(AckError { acknowledged, sent });
    assert_eq!(queue.acknowledge(0, now), error(0, 0));
    drain(&mut queue, now);
    assert_eq!(queue.acknowledge(0, now), Ok(100));
    assert_eq!(queue.acknowledge(0, now), Ok(0));
    assert_eq!(queue.acknowledge(u64::MAX, now), error(u64::MAX, 2));
}

#[test]
fn while_paused_only_the_oldest_is_tried() {
    let (mut queue, now) = filled(3);
    queue.set_paused(true);
    assert_eq!(drain(&mut queue, now), [0]);
    let due = queue.poll_timeout().unwrap();
    assert_eq!(drain(&mut queue, due), [0]);
    queue.set_paused(false);
    assert_eq!(drain(&mut queue, due), [1, 2]);
}

#[test]
fn a_hurried_message_comes_again_sooner() {
    let (mut queue, now) = filled(1);
    queue.hurry(0, Duration::from_millis(20));
    drain(&mut queue, now);
    let second = now + Duration::from_millis(20);
    assert_eq!(queue.poll_timeout(), Some(second));
    assert_eq!(drain(&mut queue, second), [0]);
    assert_eq!(
        queue.poll_timeout(),
        Some(second + Duration::from_millis(40))
    );
}

#[test]
fn a_replaced_message_counts_with_its_new_length() {
    let (mut queue, now) = filled(1);
    drain(&mut queue, now);
    assert!(queue.replace(0, Bytes::from_static(b"short")));
    queue.resend_all();
    assert_eq!(queue.poll_transmit(now).unwrap(), "short");
    assert_eq!(queue.acknowledge(0, now), Ok(5));
    assert!(!queue.replace(0, frame(0)));
    assert_eq!(queue.bytes, 0);
}
