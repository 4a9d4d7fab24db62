//! One-time codes (RFC 6238 as AWS uses it: HMAC-SHA-1, 30 seconds, six digits) and the device that
//! accepts each of them once.

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;

/// Seconds a code is shown.
pub(crate) const STEP_SECONDS: i64 = 30;

/// How many steps either side of the current one are accepted.
const WINDOW: i64 = 1;

/// How far ResyncMFADevice searches for a device whose clock has drifted.
const RESYNC_WINDOW: i64 = 60;

/// Failed attempts after which a device answers nothing for [`LOCKOUT_STEPS`]. AWS throttles too, without saying how.
const MAX_FAILURES: u32 = 5;
const LOCKOUT_STEPS: i64 = 2;

/// Why a device refused a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not the code of any step in the window, or one that is not newer than the last accepted.
    WrongCode,
    /// Too many failures: the code was not even looked at.
    Throttled,
    /// The device belongs to nobody yet.
    NotEnabled,
}

/// A virtual MFA device.
pub(crate) struct Device {
    /// `arn:aws:iam::ACCOUNT:mfa/NAME`.
    pub(crate) serial: String,
    /// The user it was enabled for.
    pub(crate) owner: Option<String>,
    pub(crate) enabled_at: Option<OffsetDateTime>,
    seed: Vec<u8>,
    /// Steps by which the device runs ahead of the server, as learnt by a resync.
    drift: i64,
    last_accepted: Option<i64>,
    failures: u32,
    locked_until: i64,
}

impl Device {
    pub(crate) fn new(serial: String, seed: Vec<u8>) -> Self {
        Self {
            serial,
            owner: None,
            enabled_at: None,
            seed,
            drift: 0,
            last_accepted: None,
            failures: 0,
            locked_until: 0,
        }
    }

    /// The code that the device shows now.
    pub(crate) fn code(&self, now: OffsetDateTime) -> String {
        code(&self.seed, step_at(now) + self.drift)
    }

    /// A code that [`Device::accept`] would take now, if any is left in the window.
    pub(crate) fn unused_code(&self, now: OffsetDateTime) -> Option<String> {
        let current = step_at(now) + self.drift;
        // The current one first, as a person would type it; a later one when that is used up.
        [current, current + WINDOW]
            .into_iter()
            .find(|step| self.last_accepted.is_none_or(|last| *step > last))
            .map(|step| code(&self.seed, step))
    }

    /// Takes a code, once: a step at or before the last accepted one never counts again.
    pub(crate) fn accept(&mut self, code: &str, now: OffsetDateTime) -> Result<(), Refusal> {
        if self.owner.is_none() {
            return Err(Refusal::NotEnabled);
        }
        self.check_throttle(now)?;
        let current = step_at(now) + self.drift;
        match self.find(code, current - WINDOW..=current + WINDOW) {
            Some(step) => {
                self.last_accepted = Some(step);
                self.failures = 0;
                Ok(())
            }
            None => Err(self.fail(now)),
        }
    }

    /// EnableMFADevice: gives the device to `owner` if both codes are right and follow each other.
    pub(crate) fn enable(
        &mut self,
        owner: &str,
        codes: (&str, &str),
        now: OffsetDateTime,
    ) -> Result<(), Refusal> {
        self.check_throttle(now)?;
        let current = step_at(now) + self.drift;
        self.accept_pair(codes, current - WINDOW..=current + WINDOW, now)?;
        self.owner = Some(owner.to_owned());
        self.enabled_at = Some(now);
        Ok(())
    }

    /// ResyncMFADevice: two consecutive codes tell how far the device's clock is off.
    pub(crate) fn resync(
        &mut self,
        codes: (&str, &str),
        now: OffsetDateTime,
    ) -> Result<(), Refusal> {
        self.check_throttle(now)?;
        let here = step_at(now);
        let second = self.accept_pair(codes, here - RESYNC_WINDOW..=here + RESYNC_WINDOW, now)?;
        self.drift = second - here;
        Ok(())
    }

    /// Seeds an already enabled device, as a lab's user has it.
    pub(crate) fn enabled_for(mut self, owner: &str, now: OffsetDateTime) -> Self {
        self.owner = Some(owner.to_owned());
        self.enabled_at = Some(now);
        self
    }

    /// DeactivateMFADevice: the device stays, burnt codes stay burnt.
    pub(crate) fn deactivate(&mut self) {
        self.owner = None;
        self.enabled_at = None;
    }

    fn accept_pair(
        &mut self,
        (first, second): (&str, &str),
        window: std::ops::RangeInclusive<i64>,
        now: OffsetDateTime,
    ) -> Result<i64, Refusal> {
        let pair = self
            .find(first, window)
            .filter(|step| same_code(&code(&self.seed, step + 1), second))
            .map(|step| step + 1);
        let Some(step) = pair else {
            return Err(self.fail(now));
        };
        self.last_accepted = Some(step);
        self.failures = 0;
        Ok(step)
    }

    fn find(&self, typed: &str, window: std::ops::RangeInclusive<i64>) -> Option<i64> {
        window
            .filter(|step| self.last_accepted.is_none_or(|last| *step > last))
            .find(|step| same_code(&code(&self.seed, *step), typed))
    }

    fn check_throttle(&self, now: OffsetDateTime) -> Result<(), Refusal> {
        if step_at(now) < self.locked_until {
            return Err(Refusal::Throttled);
        }
        Ok(())
    }

    fn fail(&mut self, now: OffsetDateTime) -> Refusal {
        self.failures += 1;
        if self.failures >= MAX_FAILURES {
            self.failures = 0;
            self.locked_until = step_at(now) + LOCKOUT_STEPS;
        }
        Refusal::WrongCode
    }
}

fn same_code(ours: &str, typed: &str) -> bool {
    bool::from(ours.as_bytes().ct_eq(typed.as_bytes()))
}

fn step_at(now: OffsetDateTime) -> i64 {
    now.unix_timestamp().div_euclid(STEP_SECONDS)
}

/// The six digits of one step.
fn code(seed: &[u8], step: i64) -> String {
    format!("{:06}", truncated(seed, step) % 1_000_000)
}

/// RFC 4226 section 5.3: dynamic truncation to 31 bits.
fn truncated(seed: &[u8], step: i64) -> u32 {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, seed);
    let tag = hmac::sign(&key, &step.to_be_bytes());
    let tag = tag.as_ref();
    let offset = usize::from(tag[tag.len() - 1] & 0x0f);
    let bytes = [
        tag[offset],
        tag[offset + 1],
        tag[offset + 2],
        tag[offset + 3],
    ];
    u32::from_be_bytes(bytes) & 0x7fff_ffff
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Base32 (RFC 4648) without padding: how authenticator apps are given a seed.
pub(crate) fn to_base32(bytes: &[u8]) -> String {
    let mut text = String::new();
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for byte in bytes {
        buffer = buffer << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(BASE32[(buffer >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(BASE32[(buffer << (5 - bits) & 31) as usize]));
    }
    text
}

/// Reads base32, either case, padding optional. `None` if any other character occurs.
pub(crate) fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut buffer, mut bits) = (0_u32, 0_u32);
    for byte in text.trim_end_matches('=').bytes() {
        let value = BASE32
            .iter()
            .position(|c| *c == byte.to_ascii_uppercase())?;
        buffer = (buffer << 5 | u32::try_from(value).ok()?) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238 appendix B, SHA-1 rows: time and eight digits.
    const RFC_6238: [(i64, u32); 6] = [
        (59, 94_287_082),
        (1_111_111_109, 7_081_804),
        (1_111_111_111, 14_050_471),
        (1_234_567_890, 89_005_924),
        (2_000_000_000, 69_279_037),
        (20_000_000_000, 65_353_130),
    ];
    const SEED: &[u8] = b"12345678901234567890";

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).expect("a valid time")
    }

    fn device() -> Device {
        Device::new("arn:aws:iam::1:mfa/alice".into(), SEED.to_vec()).enabled_for("alice", at(0))
    }

    #[test]
    fn codes_agree_with_rfc_6238() {
        for (time, digits) in RFC_6238 {
            assert_eq!(
                truncated(SEED, time / STEP_SECONDS) % 100_000_000,
                digits,
                "at {time}"
            );
            assert_eq!(
                device().code(at(time)),
                format!("{:06}", digits % 1_000_000)
            );
        }
    }

    #[test]
    fn base32_agrees_with_rfc_4648_and_reads_itself() {
        assert_eq!(to_base32(b"foobar"), "MZXW6YTBOI");
        assert_eq!(from_base32("MZXW6YTBOI======"), Some(b"foobar".to_vec()));
        assert_eq!(from_base32("mzxw6ytboi"), Some(b"foobar".to_vec()));
        assert_eq!(from_base32("MZXW1"), None);
    }

    #[test]
    fn a_code_opens_once_and_burns_every_older_one() {
        let (mut device, now) = (device(), at(1_111_111_111));
        let current = device.code(now);
        let previous = device.code(at(1_111_111_111 - 30));
        assert_eq!(device.accept(&current, now), Ok(()));
        assert_eq!(device.accept(&current, now), Err(Refusal::WrongCode));
        assert_eq!(device.accept(&previous, now), Err(Refusal::WrongCode));
        let next = device
            .unused_code(now)
            .expect("the next step is in the window");
        assert_eq!(device.accept(&next, now), Ok(()));
        assert_eq!(device.unused_code(now), None);
    }

    #[test]
    fn the_window_is_one_step_either_side() {
        let now = at(1_234_567_890);
        for (away, fits) in [
            (-60, false),
            (-30, true),
            (0, true),
            (30, true),
            (60, false),
        ] {
            let mut device = device();
            let typed = device.code(at(1_234_567_890 + away));
            assert_eq!(
                device.accept(&typed, now).is_ok(),
                fits,
                "{away} seconds away"
            );
        }
    }

    #[test]
    fn guessing_is_throttled_even_for_the_right_code() {
        let (mut device, now) = (device(), at(2_000_000_000));
        for _ in 0..MAX_FAILURES {
            assert_eq!(device.accept("000000", now), Err(Refusal::WrongCode));
        }
        let right = device.code(now);
        assert_eq!(device.accept(&right, now), Err(Refusal::Throttled));
        let later = at(2_000_000_000 + 60);
        let right = device.code(later);
        assert_eq!(device.accept(&right, later), Ok(()));
    }

    #[test]
    fn enabling_needs_two_consecutive_codes() {
        let now = at(1_234_567_890);
        let shown = |seconds: i64| device().code(at(1_234_567_890 + seconds));
        let fresh = || Device::new("serial".into(), SEED.to_vec());
        assert_eq!(
            fresh().enable("a", (&shown(0), &shown(0)), now),
            Err(Refusal::WrongCode)
        );
        assert_eq!(
            fresh().enable("a", (&shown(0), &shown(-30)), now),
            Err(Refusal::WrongCode)
        );
        assert_eq!(
            fresh().enable("a", (&shown(-30), &shown(30)), now),
            Err(Refusal::WrongCode)
        );
        let mut device = fresh();
        assert_eq!(device.accept(&shown(0), now), Err(Refusal::NotEnabled));
        assert_eq!(device.enable("a", (&shown(-30), &shown(0)), now), Ok(()));
        assert_eq!(
            device.accept(&shown(0), now),
            Err(Refusal::WrongCode),
            "both are burnt"
        );
        assert_eq!(device.accept(&shown(30), now), Ok(()));
    }

    #[test]
    fn a_resync_learns_how_far_the_device_is_off() {
        let now = at(1_234_567_890);
        let mut device = device();
        let ahead = |steps: i64| code(SEED, step_at(now) + steps);
        assert_eq!(device.accept(&ahead(10), now), Err(Refusal::WrongCode));
        assert_eq!(device.resync((&ahead(9), &ahead(10)), now), Ok(()));
        assert_eq!(device.accept(&ahead(11), now), Ok(()));
    }
}
