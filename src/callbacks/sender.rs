//! The process that sends. It keeps nothing: what it does not answer is sent again by whoever asked.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, StatusCode};
use tokio::sync::Semaphore;

use super::hosts::Hosts;
use super::wire::{Method, NameServer, Post, Posted, Refusal, Setup};
use crate::chain::chain;
use crate::frame;

/// From the first look at a name to the answer's head.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Requests at a time.
const AT_ONCE: usize = 64;
/// Characters of a reason.
const LONGEST_REASON: usize = 300;

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("{0}")]
    Setup(String),
    #[error("read how names are resolved (/etc/resolv.conf)")]
    Resolver(#[source] Box<dyn Error + Send + Sync>),
    #[error("prepare TLS")]
    Client(#[from] reqwest::Error),
}

/// All that is read of files: the root certificates, and who resolves names.
pub struct Prepared {
    client: Client,
    hosts: Arc<Hosts>,
}

impl Prepared {
    /// # Errors
    /// Without a name server or with a set-up that makes no sense.
    pub fn new(setup: &Setup) -> Result<Self, PrepareError> {
        let hosts =
            setup.hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>().map_err(PrepareError::Setup)?;
        let hosts = Arc::new(Hosts(hosts));
        let resolver = resolver(setup.name_server.parse().map_err(PrepareError::Setup)?);
        let names =
            Names { hosts: hosts.clone(), resolver: resolver.map_err(|error| PrepareError::Resolver(error.into()))? };
        // Another part of the process may have chosen one before; then that is it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .no_proxy()
            // Where it would lead was not what was asked to be called, nor looked at.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .user_agent(concat!("faber/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(names))
            .build()?;
        Ok(Self { client, hosts })
    }

    /// Sends what comes until there is nobody on the other side.
    ///
    /// # Errors
    /// When no runtime can be started, or what comes makes no sense.
    pub fn serve(self, socket: UnixStream) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let this = Arc::new(self);
        let socket = Arc::new(socket);
        let places = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(post) = frame::receive::<Post>(&*socket)? {
            let (this, socket) = (this.clone(), socket.clone());
            let Ok(place) = runtime.block_on(places.clone().acquire_owned()) else { break };
            runtime.spawn(async move {
                let number = post.number;
                let result = this.post(post).await;
                drop(place);
                let _ = tokio::task::spawn_blocking(move || {
                    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
                    let _turn = TURN.lock();
                    frame::send(&*socket, &Posted { number, result })
                })
                .await;
            });
        }
        runtime.shutdown_background();
        Ok(())
    }

    async fn post(&self, post: Post) -> Result<(), Refusal> {
        let refused =
            |reason: String, is_final| Refusal { reason: reason.chars().take(LONGEST_REASON).collect(), is_final };
        // An address in the URL is not resolved, and so looked at here alone. The configuration may be another by the next try.
        let url = self.hosts.url(&post.url).map_err(|error| refused(error.to_string(), false))?;
        let method = match post.method {
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
        };
        let request = self.client.request(method, url).header("content-type", "application/json").body(post.body);
        let request = post.headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        match request.send().await.map(|response| response.status()) {
            Ok(status) if status.is_success() => Ok(()),
            // As the specification has it: nobody wants these any more.
            Ok(StatusCode::GONE) => Err(refused("the answer was 410 Gone".into(), true)),
            Ok(status) => Err(refused(format!("the answer was {status}"), false)),
            Err(error) if error.is_timeout() => {
                Err(refused(format!("no answer within {} s", PATIENCE.as_secs()), false))
            }
            Err(error) => Err(refused(chain(&error.without_url()), false)),
        }
    }
}

fn resolver(name_server: NameServer) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    match name_server {
        NameServer::Auto => TokioResolver::builder_tokio()?.build(),
        NameServer::At(address) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            let server = NameServerConfig::new(address.ip(), true, connections.into());
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build()
        }
    }
}

/// Names' addresses, as far as callbacks may go there: the connection is made to these, so that a name which stands for another
/// address a moment later changes nothing.
struct Names {
    hosts: Arc<Hosts>,
    resolver: TokioResolver,
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (hosts, resolver) = (self.hosts.clone(), self.resolver.clone());
        Box::pin(async move {
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<IpAddr> = found.iter().collect();
            let reachable = hosts.reachable(&addresses)?;
            // The port is the URL's.
            Ok(Box::new(reachable.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}
