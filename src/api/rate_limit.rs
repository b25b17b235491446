//! How often somebody may ask: by address and by key, with governor's cells (GCRA).

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use super::client_address::network;
use crate::config::RateLimit;

/// Addresses remembered one by one; about 100 bytes each.
const ADDRESSES: usize = 100_000;
/// Beyond them, addresses share this many cells, by a hash that nobody outside can work out.
const SHARED: u64 = 4096;
/// The memory is not tidied up more often than this.
const TIDY: Duration = Duration::from_secs(1);

type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock, StateInformationMiddleware>;

pub struct RateLimits {
    by_address: Limiter<Client>,
    by_key: Limiter<u64>,
    tidied: Mutex<Instant>,
    hasher: RandomState,
}

/// Who shares an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Client {
    One(IpAddr),
    Shared(u64),
}

/// What is left of an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    pub limit: u32,
    pub remaining: u32,
    /// Until all of the limit is there again.
    pub reset: Duration,
    /// None: this request may pass.
    pub retry_after: Option<Duration>,
}

impl RateLimits {
    /// None where they are off.
    pub fn of(config: &RateLimit) -> Option<Arc<Self>> {
        config.enabled.then(|| Arc::new(Self::new(config)))
    }

    pub fn new(config: &RateLimit) -> Self {
        let by_address = RateLimiter::dashmap(Quota::per_minute(config.per_ip_per_minute)).with_middleware();
        let by_key = RateLimiter::dashmap(Quota::per_hour(config.per_key_per_hour)).with_middleware();
        Self { by_address, by_key, tidied: Mutex::new(Instant::now()), hasher: RandomState::new() }
    }

    pub fn address(&self, address: IpAddr) -> Allowance {
        check(&self.by_address, &self.client(address))
    }

    /// `key` is the key's id.
    pub fn key(&self, key: u64) -> Allowance {
        check(&self.by_key, &key)
    }

    fn client(&self, address: IpAddr) -> Client {
        let client = network(address);
        if self.by_address.len() < ADDRESSES || self.tidy() {
            Client::One(client)
        } else {
            Client::Shared(self.hasher.hash_one(client) % SHARED)
        }
    }

    /// Forgets those whose allowance is whole again; whether there is room now.
    fn tidy(&self) -> bool {
        let mut tidied = self.tidied.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if tidied.elapsed() < TIDY {
            return false;
        }
        self.by_address.retain_recent();
        self.by_address.shrink_to_fit();
        *tidied = Instant::now();
        self.by_address.len() < ADDRESSES
    }
}

fn check<K: Clone + Eq + std::hash::Hash>(limiter: &Limiter<K>, key: &K) -> Allowance {
    match limiter.check_key(key) {
        Ok(state) => {
            let quota = state.quota();
            let limit = quota.burst_size().get();
            let remaining = state.remaining_burst_capacity();
            let reset = quota.replenish_interval() * limit.saturating_sub(remaining);
            Allowance { limit, remaining, reset, retry_after: None }
        }
        Err(early) => {
            let quota = early.quota();
            let limit = quota.burst_size().get();
            let wait = early.wait_time_from(DefaultClock::default().now());
            let reset = wait + quota.replenish_interval() * (limit - 1);
            Allowance { limit, remaining: 0, reset, retry_after: Some(wait) }
        }
    }
}

impl Allowance {
    /// The one of the two that will be used up first.
    pub fn tighter(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if (other.retry_after, self.remaining) > (self.retry_after, other.remaining) => other,
            _ => self,
        }
    }

    /// `X-RateLimit-*` as the API page has them; Reset in Unix seconds.
    pub fn write(self, headers: &mut HeaderMap) {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let reset = (since_epoch + self.reset).as_secs() + 1;
        let mut put = |name, value: u64| headers.insert(HeaderName::from_static(name), HeaderValue::from(value));
        put("x-ratelimit-limit", self.limit.into());
        put("x-ratelimit-remaining", self.remaining.into());
        put("x-ratelimit-reset", reset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    fn limits(per_minute: u32) -> RateLimits {
        let number = |number| NonZeroU32::new(number).unwrap();
        RateLimits::new(&RateLimit {
            enabled: true,
            per_ip_per_minute: number(per_minute),
            per_key_per_hour: number(2),
        })
    }

    #[test]
    fn an_allowance_is_used_up_and_says_when_it_is_back() {
        let limits = limits(3);
        let ask = || limits.address([192, 0, 2, 1].into());
        assert_eq!([ask().remaining, ask().remaining, ask().remaining], [2, 1, 0]);
        let refused = ask();
        let wait = refused.retry_after.unwrap();
        assert!(wait > Duration::from_secs(18) && wait <= Duration::from_secs(20), "{wait:?}");
        assert!(refused.reset > Duration::from_secs(58) && refused.reset <= Duration::from_secs(60));
        assert_eq!(limits.address([192, 0, 2, 2].into()).remaining, 2);
        assert_eq!([limits.key(0).remaining, limits.key(1).remaining, limits.key(0).remaining], [1, 1, 0]);
    }

    #[test]
    fn neighbours_in_a_v6_network_are_one_client() {
        let limits = limits(10);
        let ask = |address: &str| limits.address(address.parse().unwrap()).remaining;
        assert_eq!([ask("2001:db8::1"), ask("2001:db8::2"), ask("2001:db8:0:1::1")], [9, 8, 9]);
        assert_eq!([ask("192.0.2.1"), ask("::ffff:192.0.2.1")], [9, 8]);
    }

    #[test]
    fn a_flood_of_addresses_does_not_fill_the_memory() {
        let limits = limits(10);
        for n in 0..(ADDRESSES as u32 + 20_000) {
            limits.address(std::net::Ipv4Addr::from(n).into());
        }
        assert!(limits.by_address.len() <= ADDRESSES + SHARED as usize);
    }

    #[test]
    fn the_tighter_allowance_is_the_one_to_run_out_first() {
        let allowance = |remaining, retry_after| Allowance { limit: 9, remaining, reset: Duration::ZERO, retry_after };
        let (much, little) = (allowance(5, None), allowance(1, None));
        let none = allowance(0, Some(Duration::from_secs(1)));
        assert_eq!(much.tighter(Some(little)), little);
        assert_eq!(little.tighter(Some(much)), little);
        assert_eq!(much.tighter(None), much);
        assert_eq!(allowance(0, None).tighter(Some(none)), none);
    }
}
