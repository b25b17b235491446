//! Where callbacks may go. Values only: no I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::Url;

/// One of the hosts that callbacks may go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// `*`: every name, and every public address.
    Any,
    /// `*.example.com`: every name below it.
    Below(String),
    /// `example.com`
    Name(String),
    /// `10.1.2.0/24` or `10.1.2.3`: as they stand in a URL, and as what a name that is allowed may stand for, public or not.
    Addresses(IpNet),
}

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (is_below, name) = match text.strip_prefix("*.") {
            _ if text == "*" => return Ok(Self::Any),
            Some(name) => (true, name),
            None => (false, text),
        };
        let is_plain = !name.contains('*');
        if !is_below && let Ok(network) = name.parse::<IpNet>() {
            return Ok(Self::Addresses(network.trunc()));
        }
        match (url::Host::parse(name), name.parse::<IpAddr>()) {
            (_, Ok(address)) if !is_below => Ok(Self::Addresses(address.into())),
            (Ok(url::Host::Domain(name)), _) if is_below && is_plain => Ok(Self::Below(without_dot(&name).to_owned())),
            (Ok(url::Host::Domain(name)), _) if is_plain => Ok(Self::Name(without_dot(&name).to_owned())),
            _ => {
                Err("expected a host's name, *.NAME for all below it, an address, a network such as 10.1.2.0/24, or *"
                    .into())
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Name(name) => f.write_str(name),
            Self::Addresses(network) => network.fmt(f),
        }
    }
}

/// The hosts that callbacks may go to; none: there are no callbacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(pub Vec<Host>);

/// Why a callback may not go somewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("this server sends no callbacks: jobs.callback_hosts is empty")]
    Off,
    #[error("expected a URL such as https://example.com/hook, of at most 2048 characters")]
    NoUrl,
    #[error("a URL of http or https is expected, without a user's name, a password or a fragment")]
    Form,
    #[error("callbacks may not go to {0}: jobs.callback_hosts does not have it")]
    NotNamed(String),
    #[error("callbacks may not go to {0}, which is no public address: jobs.callback_hosts does not have it")]
    NotPublic(IpAddr),
}

/// Characters of a URL.
const LONGEST: usize = 2048;

impl Hosts {
    /// A URL that a callback may have, as far as can be said without resolving a name.
    ///
    /// # Errors
    /// What is not as it has to be, or not allowed.
    pub fn url(&self, text: &str) -> Result<Url, HostError> {
        if self.0.is_empty() {
            return Err(HostError::Off);
        }
        let url = Url::parse(text).ok().filter(|_| text.len() <= LONGEST).ok_or(HostError::NoUrl)?;
        let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        if !is_plain || !["http", "https"].contains(&url.scheme()) {
            return Err(HostError::Form);
        }
        match url.host() {
            Some(url::Host::Domain(name)) if self.has_name(without_dot(name)) => Ok(url),
            Some(url::Host::Domain(name)) => Err(HostError::NotNamed(name.to_owned())),
            Some(url::Host::Ipv4(address)) => self.literal(address.into()).map(|()| url),
            Some(url::Host::Ipv6(address)) => self.literal(address.into()).map(|()| url),
            None => Err(HostError::NoUrl),
        }
    }

    fn has_name(&self, name: &str) -> bool {
        self.0.iter().any(|host| match host {
            Host::Any => true,
            Host::Below(parent) => name.strip_suffix(parent).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            Host::Name(known) => known == name,
            Host::Addresses(_) => false,
        })
    }

    /// An address that stands in a URL itself.
    fn literal(&self, address: IpAddr) -> Result<(), HostError> {
        let address = address.to_canonical();
        match (self.has_address(address), is_public(address), self.0.contains(&Host::Any)) {
            (true, _, _) | (false, true, true) => Ok(()),
            (false, false, _) => Err(HostError::NotPublic(address)),
            (false, true, false) => Err(HostError::NotNamed(address.to_string())),
        }
    }

    fn has_address(&self, address: IpAddr) -> bool {
        let networks =
            self.0.iter().filter_map(|host| if let Host::Addresses(network) = host { Some(network) } else { None });
        networks.into_iter().any(|network| network.contains(&address))
    }

    /// Those of a name's addresses that a callback may be sent to.
    ///
    /// # Errors
    /// `NotPublic` with the first of them when it may be sent to none.
    pub fn reachable(&self, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, HostError> {
        let addresses = addresses.iter().map(IpAddr::to_canonical);
        let (may, may_not): (Vec<IpAddr>, Vec<IpAddr>) =
            addresses.partition(|address| self.has_address(*address) || is_public(*address));
        match (may.is_empty(), may_not.first()) {
            (true, Some(first)) => Err(HostError::NotPublic(*first)),
            _ => Ok(may),
        }
    }
}

/// The root's dot at the end of a name says nothing new.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// What is not everybody's to reach: IANA's special-purpose addresses (RFC 6890), multicast, and an address at which Azure has its
/// machines' metadata. (The others' are link-local, shared or unique local ones.)
const SPECIAL_V4: [Ipv4Net; 17] = [
    v4(0, 0, 0, 0, 8),
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(127, 0, 0, 0, 8),
    v4(168, 63, 129, 16, 32),
    v4(169, 254, 0, 0, 16),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 31, 196, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
    v4(224, 0, 0, 0, 4),
    v4(240, 0, 0, 0, 4),
];

/// Global unicast (RFC 4291), of which these are something else: protocols' own, documentation, and ways to IPv4 addresses, which
/// may be any.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);
const SPECIAL_V6: [Ipv6Net; 4] = [v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x2002, 0, 16), v6(0x3fff, 0, 20)];

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            GLOBAL_V6.contains(&address) && !SPECIAL_V6.iter().any(|network| network.contains(&address))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &[&str]) -> Hosts {
        Hosts(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn only_what_is_named_is_allowed_whatever_it_is_written_like() {
        let some = hosts(&["hooks.example.com", "*.example.org", "127.0.0.1", "10.1.0.0/16"]);
        for url in [
            "https://hooks.example.com/x?y=1",
            "http://HOOKS.example.com.:8080/",
            "https://a.b.example.org",
            "http://127.0.0.1:99/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://[::ffff:127.0.0.1]/",
            "http://10.1.255.1/",
        ] {
            some.url(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        }
        for url in [
            "https://example.org/",
            "https://evilexample.org/",
            "https://hooks.example.com.evil.net/",
            "https://a.hooks.example.com/",
            "http://127.0.0.2/",
            "http://[::1]/",
            "http://10.2.0.0/",
            "http://8.8.8.8/",
            "http://localhost/",
            "ftp://hooks.example.com/",
            "https://me@hooks.example.com/",
            "https://:secret@hooks.example.com/",
            "https://hooks.example.com/#here",
            "hooks.example.com",
            "file:///etc/passwd",
            "http://",
            "",
        ] {
            some.url(url).expect_err(url);
        }
        assert_eq!(hosts(&[]).url("https://example.com"), Err(HostError::Off));
        assert_eq!(hosts(&["*"]).url(&format!("https://x/{}", "x".repeat(2048))), Err(HostError::NoUrl));
        hosts(&["*"]).url("http://8.8.8.8/").unwrap();
        let local = "127.0.0.1".parse().unwrap();
        assert_eq!(hosts(&["*"]).url("http://127.0.0.1/"), Err(HostError::NotPublic(local)));
    }

    #[test]
    fn a_name_leads_to_public_addresses_and_to_those_that_are_named() {
        let any = hosts(&["*", "127.0.0.2"]);
        let reachable = |list: &[&str]| {
            let addresses: Vec<IpAddr> = list.iter().map(|text| text.parse().unwrap()).collect();
            any.reachable(&addresses).map(|may| may.iter().map(IpAddr::to_string).collect::<Vec<_>>())
        };
        assert_eq!(reachable(&["127.0.0.1", "127.0.0.2", "9.9.9.9"]).unwrap(), ["127.0.0.2", "9.9.9.9"]);
        assert_eq!(reachable(&["2606:4700::1111", "168.63.129.15"]).unwrap(), ["2606:4700::1111", "168.63.129.15"]);
        for address in [
            "0.0.0.0",
            "10.0.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "168.63.129.16",
            "169.254.169.254",
            "172.31.0.1",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "3fff::1",
        ] {
            assert!(matches!(reachable(&[address]), Err(HostError::NotPublic(_))), "{address}");
        }
    }

    #[test]
    fn what_stands_in_the_configuration_is_read_or_refused() {
        for text in ["*", "*.example.com", "example.com", "10.0.0.0/8", "127.0.0.1/32", "fd00::/8"] {
            assert_eq!(text.parse::<Host>().unwrap().to_string(), text);
        }
        assert_eq!("::1".parse::<Host>().unwrap().to_string(), "::1/128");
        assert_eq!("EXAMPLE.com.".parse::<Host>().unwrap().to_string(), "example.com");
        for text in ["", "*.", "*.*.com", "https://example.com", "example.com:80", "10.0.0.0/33", "*.127.0.0.1", "a b"]
        {
            text.parse::<Host>().expect_err(text);
        }
    }
}
