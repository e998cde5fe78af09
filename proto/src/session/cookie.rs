//! What a server derives from its secret: cookies, tokens, and the places of sources among the budgets.

use std::{
    hash::Hasher,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::budget::Source;
use crate::{
    mutants::{Mutant, is_active},
    time::Instant,
    wire::{Cookie, Nonce},
};

/// Cookies are accepted in the period they were made in and in the next. The period enters the hash, so a cookie cannot
/// outlive it, as if the secret were another in each period.
const COOKIE_PERIOD: Duration = Duration::from_secs(60);

/// Rounds that turn numbers into tokens. From 5 on nobody can tell them from random numbers without having seen about as
/// many as 2^32 (Patarin, CRYPTO 2004).
const TOKEN_ROUNDS: u8 = 6;

/// The secret of a server's run and what makes one core's use of it different from another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub(super) secret: [u8; 16],
    pub(super) boot_id: u64,
    pub(super) core: u8,
}

impl Keys {
    /// The cookie of one address and nonce now. It needs no memory: anyone may ask, only the address's owner learns it.
    pub(super) fn cookie(&self, now: Instant, addr: &SocketAddr, nonce: &Nonce) -> Cookie {
        self.cookie_of(period(now), addr, nonce)
    }

    /// Whether `cookie` was made for this address and nonce, in this period or the one before.
    pub(super) fn is_cookie(&self, cookie: &Cookie, now: Instant, addr: &SocketAddr, nonce: &Nonce) -> bool {
        let periods = [Some(period(now)), period(now).checked_sub(1)];
        periods.into_iter().flatten().any(|period| self.cookie_of(period, addr, nonce) == *cookie)
    }

    fn cookie_of(&self, period: u64, addr: &SocketAddr, nonce: &Nonce) -> Cookie {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(b"cookie");
        // All cores have the same secret: what was asked of one must not open a session with another.
        hasher.write(&[self.core]);
        if !is_active(Mutant::CookieNotBound) {
            match addr.ip() {
                IpAddr::V4(ip) => hasher.write(&ip.octets()),
                IpAddr::V6(ip) => hasher.write(&ip.octets()),
            }
            hasher.write(&addr.port().to_le_bytes());
        }
        hasher.write(nonce);
        hasher.write(&period.to_le_bytes());
        hasher.finish128().as_bytes()
    }

    /// The token of the core's session of this number, counted over its run.
    ///
    /// Two numbers never give the same token: the halves of the number go through a Feistel network, which is a
    /// permutation whatever its round function is. Nobody can guess a token from others, because the round function is a
    /// hash under the secret. Core and boot id enter it, and the secret is random at each boot, so that a token of
    /// another core or an earlier run fits here by chance only, and that is one in 2^64 for each session.
    pub(super) fn token(&self, number: u64) -> u64 {
        if is_active(Mutant::SessionIdReuse) {
            return 1;
        }
        let (mut left, mut right) = ((number >> 32) as u32, number as u32);
        for round in 0..TOKEN_ROUNDS {
            let mut hasher = SipHasher24::new_with_key(&self.secret);
            hasher.write(b"token");
            hasher.write(&[self.core, round]);
            hasher.write(&self.boot_id.to_le_bytes());
            hasher.write(&right.to_le_bytes());
            (left, right) = (right, left ^ hasher.finish128().h1 as u32);
        }
        u64::from(left) << 32 | u64::from(right)
    }

    /// A number that decides which bucket a source's budget is in.
    pub(super) fn bucket(&self, source: Source) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(b"source");
        hasher.write(&source.to_bytes());
        hasher.finish128().h1
    }
}

const fn period(now: Instant) -> u64 {
    now.as_nanos() / COOKIE_PERIOD.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Goal: tokens differ, and look random. Method: many numbers, those at the edges too; each bit is set half the time.
    #[test]
    fn tokens_differ_by_number_core_boot_and_secret() {
        let keys = Keys { secret: [1; 16], boot_id: 2, core: 3 };
        let numbers = (0..50_000).chain(u64::MAX - 1_000..=u64::MAX).chain((0..1_000).map(|high| high << 32));
        let numbers: HashSet<_> = numbers.collect();
        let tokens: HashSet<_> = numbers.iter().map(|&number| keys.token(number)).collect();
        assert_eq!(tokens.len(), numbers.len());
        for bit in 0..64 {
            let set = tokens.iter().filter(|&token| token >> bit & 1 == 1).count() as f64;
            assert!((set / tokens.len() as f64 - 0.5).abs() < 0.02, "bit {bit}");
        }
        for other in [Keys { secret: [2; 16], ..keys }, Keys { boot_id: 3, ..keys }, Keys { core: 4, ..keys }]
        {
            assert!((0..1_000).all(|number| !tokens.contains(&other.token(number))));
        }
    }
}
