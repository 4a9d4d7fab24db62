//! Large read buffers that idle pipes do not hold.
//!
//! A pipe needs such a buffer while bytes move and nothing while none do. What is allocated afresh for
//! every frame costs page faults, as the allocator returns what is freed to the system: a sixth of
//! what the sender of a bulk transfer does. So every thread keeps buffers at hand, as many as come
//! back with one acknowledgement.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

/// Bytes that one buffer holds at least: the longest frame as TLS sends it, which adds 22 bytes to
/// each of its four records (RFC 8446 section 5.2), and some of the next. With less, one read of
/// the socket would end within the fourth, and the target be written to twice.
pub const READ: usize = 66 * 1024;
/// Buffers that a thread keeps, and all threads together.
const KEPT: usize = 32;
const KEPT_IN_ALL: usize = 128;

static IN_ALL: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare(Vec::new())) };
}

/// A thread's buffers, counted.
struct Spare(Vec<BytesMut>);

impl Spare {
    fn take(&mut self) -> Option<BytesMut> {
        let taken = self.0.pop()?;
        IN_ALL.fetch_sub(1, Ordering::Relaxed);
        Some(taken)
    }

    fn give(&mut self, mut buffer: BytesMut) {
        // Several threads at once may overshoot by one each.
        let room = self.0.len() < KEPT && IN_ALL.load(Ordering::Relaxed) < KEPT_IN_ALL;
        if room && buffer.try_reclaim(READ) {
            IN_ALL.fetch_add(1, Ordering::Relaxed);
            self.0.push(buffer);
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        IN_ALL.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

/// An empty buffer with room for [`READ`] bytes.
pub fn take() -> BytesMut {
    SPARE
        .with_borrow_mut(Spare::take)
        .unwrap_or_else(|| BytesMut::with_capacity(READ))
}

/// Gives back the buffer that a frame was read into, if nothing else refers to it.
pub fn recycle(frame: Bytes) {
    if let Ok(buffer) = frame.try_into_mut() {
        give(buffer);
    }
}

/// Gives a buffer back. What it holds is dropped; one that is still referenced is not kept.
pub fn give(mut buffer: BytesMut) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| spare.give(buffer));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        SPARE.with_borrow(|spare| spare.0.len())
    }

    #[test]
    fn a_thread_keeps_so_many_and_takes_them_with_it() {
        std::thread::spawn(|| {
            let buffers: Vec<_> = (0..KEPT + 5).map(|_| take()).collect();
            buffers.into_iter().for_each(give);
            assert_eq!(kept(), KEPT);
        })
        .join()
        .unwrap();
        std::thread::spawn(|| assert_eq!(kept(), 0)).join().unwrap();
        assert!(IN_ALL.load(Ordering::Relaxed) < KEPT_IN_ALL);
    }

    #[test]
    fn a_buffer_that_is_still_referenced_is_not_handed_out_again() {
        while SPARE.with_borrow_mut(Spare::take).is_some() {}
        let mut buffer = take();
        buffer.extend_from_slice(&[7; READ]);
        let kept = buffer.split_to(10).freeze();
        give(buffer);
        let mut next = take();
        next.extend_from_slice(&[9; READ]);
        assert_eq!(kept, [7; 10].as_slice());
    }

    #[test]
    fn a_frames_buffer_comes_back_whole_once_nobody_refers_to_it() {
        while SPARE.with_borrow_mut(Spare::take).is_some() {}
        let mut buffer = take();
        buffer.extend_from_slice(&[7; READ]);
        let (frame, place) = (buffer.freeze(), 7);
        let referred = frame.slice(place..);
        recycle(frame);
        assert_eq!(kept(), 0, "somebody reads it");
        recycle(referred);
        assert_eq!(kept(), 1);
        assert!(take().capacity() >= READ);
        // Short ones are not worth keeping.
        recycle(Bytes::copy_from_slice(b"short"));
        assert_eq!(kept(), 0);
    }
}
