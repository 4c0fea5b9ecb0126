//! The MQTT side: where the broker is, whether it can be reached, and a link to it for each session.

mod budget;
mod config;
pub mod connection;
mod dedicated;
pub mod downlink;
#[cfg_attr(not(feature = "embedded-broker"), path = "broker/not_embedded.rs")]
pub mod embedded;
#[cfg(feature = "embedded-broker")]
mod front;
pub mod link;
mod orders;
mod publisher;
mod rules;
mod shared;
mod signal;
mod transport;
mod watch;

use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{BrokerUrl, BrokerUrlError, Config, Upstream};
pub use downlink::{Direct, Downlink, Handle, Rest, Taken};
pub use link::{
    Abilities, Command, Commands, Credentials, Event, Link, Opening, Owner, Queue, Ready, Renewal, needs_own_client,
};
pub use publisher::Publishing;
pub use transport::{Target, TlsError};
pub use watch::{Reach, Standing};

use crate::access::{Identity, Template};
use crate::delivery;
use crate::mqtt::Message;
use crate::mqtt::packet::Connect;
use crate::wire::{Refusal, Will};

use budget::Budget;
use embedded::{Embedded, EmbeddedError};
use publisher::Publisher;
use shared::Shared;
use signal::Raise;

/// Requests that a session may hand over before it waits.
const COMMANDS: usize = 32;

/// The broker behind the gateway.
pub struct Broker {
    setup: Arc<Setup>,
    /// Memory that the outboxes of all links share.
    budget: Arc<Budget>,
    tasks: TaskTracker,
    /// Where sessions share connections, those that need none of their own.
    shared: Option<Shared>,
    /// For programs that have no session.
    publisher: Publisher,
}

/// What every link needs.
struct Setup {
    config: Config,
    place: Place,
    reach: Reach,
}

/// Where the broker is.
enum Place {
    /// In another process.
    Elsewhere(Target),
    /// In this one.
    Inside(Embedded),
}

impl Setup {
    /// The broker is in this process and needs care.
    fn is_embedded(&self) -> bool {
        matches!(self.place, Place::Inside(_))
    }

    /// Where the next connection goes.
    fn target(&self) -> Target {
        match &self.place {
            Place::Elsewhere(target) => target.clone(),
            Place::Inside(embedded) => embedded.target(),
        }
    }

    /// The broker has this will and publishes it no sooner than the client wants: it needn't be done here.
    fn holds(&self, will: &Will) -> bool {
        !self.is_embedded() && u64::from(will.delay) >= self.config.grace.as_secs()
    }

    /// What all CONNECTs have in common.
    fn connect(&self) -> Connect<'_> {
        Connect {
            client_id: "",
            clean_start: true,
            keep_alive: self.config.keep_alive.as_secs() as u16,
            session_expiry: 0,
            receive_maximum: self.config.receive_maximum.get(),
            maximum_packet_size: self.config.max_packet.get(),
            username: self.config.username.as_deref(),
            password: self.config.password.as_ref().map(ExposeSecret::expose_secret),
            will: None,
        }
    }
}

/// The broker can't be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The embedded broker.
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
}

impl Broker {
    /// Starts the embedded broker where that is the one, and watches whether the broker can be reached until `closing`.
    pub fn start(config: Config, tasks: TaskTracker, closing: CancellationToken) -> Result<Broker, StartError> {
        let place = match &config.url {
            BrokerUrl::Mqtt { host, port, tls: false } => Place::Elsewhere(Target::plain(host.clone(), *port)),
            BrokerUrl::Mqtt { host, port, tls: true } => Place::Elsewhere(Target::tls(host.clone(), *port, &config)?),
            BrokerUrl::Unix { path } => Place::Elsewhere(Target::unix(path.clone())),
            BrokerUrl::Embedded { address, fall_back } => Place::Inside(Embedded::start(*address, *fall_back)?),
        };
        let setup = Arc::new(Setup { config, place, reach: Reach::default() });
        let watched = setup.clone();
        let budget = Arc::<Budget>::default();
        let shared = match setup.config.upstream {
            Upstream::PerSession => None,
            Upstream::Shared => Some(Shared::new(setup.clone(), budget.clone(), tasks.clone(), closing.clone())),
        };
        let publisher = Publisher::new(setup.clone(), budget.clone(), tasks.clone(), closing.clone());
        tasks.spawn(async move { closing.run_until_cancelled(watch::run(&watched)).await });
        Ok(Broker { setup, budget, tasks, shared, publisher })
    }

    /// A link for a new session; `predecessor` is the link of the same client identifier, which gives way first.
    pub fn open(&self, opening: Opening, delivery: delivery::Config, predecessor: Option<Handle>) -> Link {
        if let Some(shared) = &self.shared
            && !opening.needs_own_client()
        {
            return shared.open(opening, delivery, predecessor);
        }
        let downlink = Downlink::new(delivery, self.budget.clone(), Raise::default());
        let (commands, receiver) = orders::channel(COMMANDS);
        self.tasks.spawn(dedicated::run(self.setup.clone(), opening, downlink.clone(), receiver, predecessor));
        Link { commands: Commands::Own(commands), downlink }
    }

    /// A place for a publish of somebody who has no session; few may be under way at a time.
    pub fn begin_publish(&self) -> Result<Publishing, Refusal> {
        self.publisher.enter()
    }

    /// Whether the broker knows who each session is, and may have rules of its own for each.
    pub fn knows_users(&self) -> bool {
        self.setup.config.session_username.is_some()
    }

    /// Whether the broker can be reached.
    pub fn reach(&self) -> &Reach {
        &self.setup.reach
    }

    /// Whether the broker would take this will; what else it thinks of it shows when it is published.
    pub fn judge_will(&self, message: &Message) -> Result<(), Refusal> {
        if self.setup.is_embedded() { rules::judge_topic(&message.topic) } else { Ok(()) }
    }

    /// What the broker is told of a session: its client identifier, and what it shows in place of the gateway's name and password. The
    /// error names what the session lacks.
    pub fn names(
        &self,
        identity: Option<&Identity>,
        client_id: &str,
        token: Option<&SecretString>,
    ) -> Result<(String, Option<Arc<Credentials>>), String> {
        let config = &self.setup.config;
        let Some(identity) = identity else { return Ok((client_id.to_owned(), None)) };
        let id = config.client_id.client_id(identity, client_id);
        if config.session_username.is_none() && config.session_password.is_none() {
            return Ok((id, None));
        }
        let fill = |template: &Option<Template>| {
            template.as_ref().map(|template| template.fill(identity, client_id, token)).transpose()
        };
        let username = fill(&config.session_username)?.map(|name| name.expose_secret().to_owned());
        Ok((id, Some(Arc::new(Credentials { username, password: fill(&config.session_password)? }))))
    }

    /// Where the broker is, for people.
    pub fn address(&self) -> String {
        match &self.setup.place {
            Place::Inside(embedded) => format!("embedded rumqttd, mqtt://{}", embedded.address()),
            Place::Elsewhere(_) => self.setup.config.url.to_string(),
        }
    }
}
