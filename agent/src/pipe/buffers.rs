//! Large read buffers that idle pipes do not hold.
//!
//! A pipe needs 64 KiB while bytes move and nothing while none do. Allocating at every wake-up
//! would cost a system call each time, so every worker thread keeps a few buffers at hand.

use std::cell::RefCell;

use bytes::BytesMut;

/// Bytes that one buffer holds at least: a `Data` frame with its header.
pub(crate) const READ: usize = 64 * 1024;
/// Buffers that a thread keeps.
const KEPT: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for [`READ`] bytes.
pub(crate) fn take() -> BytesMut {
    SPARE
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| BytesMut::with_capacity(READ))
}

/// Gives a buffer back. What it holds is dropped; one that is still referenced is not kept.
pub(crate) fn give(mut buffer: BytesMut) {
    buffer.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < KEPT && buffer.try_reclaim(READ) {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_still_referenced_is_not_handed_out_again() {
        while SPARE.with_borrow_mut(Vec::pop).is_some() {}
        let mut buffer = take();
        buffer.extend_from_slice(&[7; READ]);
        let kept = buffer.split_to(10).freeze();
        give(buffer);
        let mut next = take();
        next.extend_from_slice(&[9; READ]);
        assert_eq!(kept, [7; 10].as_slice());
    }
}
