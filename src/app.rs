//! The composition root: builds the parts from the configuration, starts them, and stops them in order.

use std::backtrace::Backtrace;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::access::Policy;
use crate::audit::{self, Audit, Event};
use crate::auth::{self, Judge, Revoked};
use crate::broker::{self, Broker, Standing};
use crate::config::{Change, Config, ConfigError};
use crate::http::Gate;
use crate::log::Log;
use crate::overload::Overload;
use crate::session::{Askers, Context, Doors, Entrance, Lobby, Quotas, Reloaded, Reloads, Roster, Settings, Summons};
use crate::shutdown::Drain;
use crate::{http, metrics, systemd};

/// How long a service manager waits for the broker before it is told that the gateway serves.
const BROKER_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether client certificates are to be judged anew.
const CERTIFICATES_LOOK: Duration = Duration::from_secs(1);
/// How long operators may take to have their last answers, once all else is over.
const LAST_LOOK: Duration = Duration::from_secs(1);
/// How long the last lines of the audit log may take to be written, when even that is over.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Who wants the configuration read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Whoever may send the process a signal.
    Signal,
    /// An operator, over the admin API.
    Api,
}

impl By {
    /// As the audit log has it.
    fn name(self) -> &'static str {
        match self {
            By::Signal => "SIGHUP",
            By::Api => "admin API",
        }
    }
}

/// The running gateway.
pub struct App {
    listen: SocketAddr,
    admin_listen: SocketAddr,
    tls: Option<Arc<http::Tls>>,
    context: Arc<Context>,
    config: Config,
    /// Keeps fresh what the judge fetches.
    watching: Watching,
    /// Who may do what operators do.
    gate: Arc<Gate>,
    /// Operators look on while the gateway drains.
    admin: TaskTracker,
    admin_lobby: Arc<Lobby>,
    /// Ends of connections, for peers that have yet to read what was sent.
    lingering: TaskTracker,
    over: CancellationToken,
}

/// The gateway can't start; the message names the setting.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error(transparent)]
    Audit(#[from] audit::StartError),
    #[error(transparent)]
    Broker(#[from] broker::StartError),
    #[error(transparent)]
    Auth(#[from] auth::StartError),
    #[error(transparent)]
    Tls(#[from] http::TlsError),
    #[error(transparent)]
    Listen(#[from] http::ListenError),
    #[error("the address of a listener can't be read: {0}")]
    Address(#[from] io::Error),
}

/// From now on a panic is a line of the log and a count. It ends the task that it is in, and the process goes on.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        metrics::panicked();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        error!(place, fault = panic.payload_as_str(), backtrace = %Backtrace::capture(), "a task has panicked");
    }));
}

impl App {
    /// Starts everything; on the way back, browsers can connect.
    pub async fn start(config: Config, log: Log, page: PrometheusHandle) -> Result<App, StartError> {
        let tasks = TaskTracker::new();
        let drain = Drain::default();
        let closing = drain.begun().clone();
        let over = CancellationToken::new();
        let tls = http::Tls::start(&config.tls)?;
        let listener = http::listen("http.listen", config.http.listen, config.http.backlog).await?;
        let admin_listener = http::listen("http.admin_listen", config.http.admin_listen, config.http.backlog).await?;
        let audit = Audit::start(&config.audit)?;
        let broker_timeout = config.broker.request_timeout;
        let broker = Broker::start(config.broker.clone(), tasks.clone(), closing.clone())?;
        metrics::outbox_limit(config.delivery.max_total_bytes.get());
        let revoked = Revoked::open(&config.auth)?;
        let judge = Judge::new(&config.auth, revoked.clone())?;
        let policy = policy(&config);
        let watching = Watching::begin(&judge);
        let context = Arc::new(Context {
            settings: ArcSwap::from_pointee(settings(&config, judge, policy)),
            broker_timeout,
            broker,
            roster: Roster::default(),
            entrance: Entrance::new(&config.connections),
            lobby: Lobby::new(&config.connections),
            tasks,
            closing,
            drain,
            overload: Overload::new(config.connections.max_stall),
            quotas: Quotas::default(),
            revoked,
            reloads: Reloads::default(),
            log,
            audit,
        });
        let (listen, admin_listen) = (listener.address()?, admin_listener.address()?);
        context.audit.record(&Event::Started { version: env!("CARGO_PKG_VERSION") });
        let closing = &context.closing;
        context.tasks.spawn(closing.clone().run_until_cancelled_owned(metrics::upkeep(page.clone())));
        let lingering = TaskTracker::new();
        // A lobby for each: a crowd of browsers keeps no operator out.
        let terms = |lobby: &Arc<Lobby>, tasks: &TaskTracker, closing: &CancellationToken, is_tls: bool| http::Terms {
            config: config.http.clone(),
            tls: tls.clone().filter(|_| is_tls),
            context: context.clone(),
            lobby: lobby.clone(),
            tasks: tasks.clone(),
            lingering: lingering.clone(),
            closing: closing.clone(),
        };
        let (admin, admin_lobby) = (TaskTracker::new(), Lobby::new(&config.connections));
        context.tasks.spawn(http::serve(listener, terms(&context.lobby, &context.tasks, closing, true)));
        let gate = Gate::new(admin_listen, &config.admin);
        if gate.is_shut() {
            info!(
                "the admin API is off: http.admin_listen can be reached from other machines, and there is no admin.token_file"
            );
        }
        admin.spawn(http::serve_admin(
            admin_listener,
            page,
            gate.clone(),
            terms(&admin_lobby, &admin, &over, config.tls.admin),
        ));
        if let Some(tls) = tls.clone() {
            tokio::spawn(over.clone().run_until_cancelled_owned(tls.watch()));
        }
        tokio::spawn(systemd::watchdog());
        if let Some(tls) = tls.clone() {
            tokio::spawn(over.clone().run_until_cancelled_owned(judge_certificates(tls, context.clone())));
        }
        let watched = context.clone();
        tokio::spawn(over.clone().run_until_cancelled_owned(async move { watched.overload.watch().await }));
        Ok(App { listen, admin_listen, tls, context, config, watching, gate, admin, admin_lobby, lingering, over })
    }

    /// Tells the service manager that the gateway serves: when the broker was reached, or a moment later without it.
    pub async fn tell_ready(&self) {
        let until = Instant::now() + BROKER_PATIENCE;
        while !self.is_broker_reached() && Instant::now() < until {
            sleep(BROKER_PATIENCE / 100).await;
        }
        systemd::ready(&self.status());
    }

    fn is_broker_reached(&self) -> bool {
        self.context.broker.reach().standing() == Standing::Up
    }

    fn status(&self) -> String {
        let broker = if self.is_broker_reached() { "is reached" } else { "cannot be reached" };
        format!("Serving browsers on {}; the broker {broker}", self.listen)
    }

    /// Waits until an operator asks over the API for the configuration to be read again; those who did are to be told what became of it.
    pub async fn asked_to_reload(&self) -> Askers {
        self.context.reloads.asked().await;
        self.context.reloads.askers()
    }

    /// Puts in force what can be of a configuration that was read again, and says of each setting that changed what becomes of it.
    /// One that could not be read changes nothing.
    pub fn reload(&mut self, read: Result<Config, ConfigError>, by: By) -> Result<Reloaded, String> {
        systemd::reloading();
        let read = read.map_err(|error| error.to_string());
        let renewed = read.and_then(|new| match self.context.settings.load().judge.renewed(&new.auth) {
            Ok(judge) => Ok((new, judge)),
            Err(error) => Err(error.to_string()),
        });
        let outcome = renewed.map(|(new, judge)| self.replace(new, judge, by));
        if let Err(error) = &outcome {
            self.context.audit.record(&Event::ConfigurationRefused { by: by.name(), why: error });
            error!(%error, "the configuration can't be read again: the old one stays in force");
        }
        metrics::configuration_reloaded(outcome.is_ok());
        systemd::ready(&self.status());
        outcome
    }

    fn replace(&mut self, mut new: Config, judge: Judge, by: By) -> Reloaded {
        // What can't be used is told, and wanted again next time.
        let wanted = self.config.tls.replaced_by(new.tls.clone());
        if self.tls.as_ref().is_some_and(|tls| tls.replace(&wanted).is_err()) {
            new.tls = self.config.tls.clone();
        }
        let (next, changes) = self.config.replaced_by(new);
        // The lines are written at the more talkative of the two levels.
        let is_louder = next.log.level.tells_more_than(&self.context.log.level());
        if is_louder {
            self.context.log.set_level(&next.log.level);
        }
        changes.iter().for_each(tell);
        changes.iter().for_each(|change| self.context.audit.record(&changed(change, by)));
        let needing_restart = changes.iter().filter(|change| change.needs_restart).count();
        info!(changed = changes.len(), needing_restart, "the configuration was read again");
        if !is_louder {
            self.context.log.set_level(&next.log.level);
        }
        metrics::outbox_limit(next.delivery.max_total_bytes.get());
        self.watching = Watching::begin(&judge);
        self.context.settings.store(Arc::new(settings(&next, judge, policy(&next))));
        self.context.entrance.set_limits(&next.connections);
        self.context.lobby.set_limits(&next.connections);
        self.admin_lobby.set_limits(&next.connections);
        self.context.overload.set_max_stall(next.connections.max_stall);
        self.context.audit.set_rules(&next.audit);
        self.gate.set_token(&next.admin);
        self.config = next;
        if changes
            .iter()
            .any(|change| ["auth.", "roles.", "groups."].iter().any(|part| change.setting.starts_with(part)))
        {
            let judged = self.context.roster.summon(|_| true, || Summons::Judge);
            info!(sessions = judged, "the rights of open sessions are judged anew");
        }
        Reloaded { changed: changes.len(), needing_restart }
    }

    /// Waits until an operator asks for the end.
    pub async fn told_to_stop(&self) {
        self.context.drain.announced().await;
    }

    /// Stops. First the gateway is not ready and serves all the same, where a notice is wanted; then no new connections, what waits
    /// for browsers, a `bye` to each, the last requests, a goodbye to the broker, and the last lines of the audit log.
    pub async fn stop(self) {
        let Context { drain, tasks, audit, .. } = &*self.context;
        drain.announce();
        systemd::stopping("Draining");
        if let Some(notice) = self.config.shutdown.notice {
            info!(?notice, "not ready any more, and serving until the notice is over");
            sleep(notice).await;
        }
        info!("stopping");
        let plan = drain.begin(&self.config.shutdown);
        tasks.close();
        if timeout_at(plan.over, tasks.wait()).await.is_err() {
            warn!("the deadline has passed (shutdown.deadline): what was left is cut off");
        }
        self.lingering.close();
        let _ = timeout_at(plan.over, self.lingering.wait()).await;
        self.over.cancel();
        self.admin.close();
        let _ = timeout(LAST_LOOK, self.admin.wait()).await;
        audit.record(&Event::Stopped);
        audit.finish(Instant::now() + LAST_LINES).await;
    }
}

/// What the roles of a checked configuration allow.
pub fn policy(config: &Config) -> Arc<Policy> {
    Arc::new(config.auth.policy(&config.roles, &config.groups).expect("the configuration was checked"))
}

/// Has sessions judged anew that came with a client certificate, when other authorities or lists of revoked certificates are in force.
async fn judge_certificates(tls: Arc<http::Tls>, context: Arc<Context>) {
    let mut judged_at = tls.reloads();
    loop {
        sleep(CERTIFICATES_LOOK).await;
        let reloads = tls.reloads();
        if reloads != std::mem::replace(&mut judged_at, reloads) {
            context.roster.summon(|visitor| visitor.vouching.is_some(), || Summons::Judge);
        }
    }
}

/// The task that keeps fresh what a judge fetches, until another judge takes its place.
struct Watching(AbortHandle);

impl Watching {
    fn begin(judge: &Judge) -> Watching {
        let judge = judge.clone();
        Watching(tokio::spawn(async move { judge.watch().await }).abort_handle())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What sessions read of the configuration.
fn settings(config: &Config, judge: Judge, policy: Arc<Policy>) -> Settings {
    let (session, wire, delivery) = (config.session.clone(), config.wire.clone(), config.delivery.clone());
    let doors = Doors {
        cookie: config.auth.cookie.clone(),
        query_token: config.auth.query_token,
        certificate: config.auth.certificate.is_some(),
        allowed_origins: config.http.allowed_origins.clone(),
    };
    Settings { session, wire, delivery, doors, judge, policy }
}

fn tell(change: &Change) {
    let Change { setting, from, to, needs_restart } = change;
    match needs_restart {
        false => info!(setting, from, to, "changed and in force"),
        true => warn!(setting, from, to, "changed, but needs a restart"),
    }
}

fn changed(change: &Change, by: By) -> Event<'_> {
    let Change { setting, from, to, needs_restart } = change;
    Event::ConfigurationChanged { by: by.name(), setting, from, to, needs_restart: *needs_restart }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let App { listen, admin_listen, context, config, .. } = self;
        let secure = |is_tls: bool| if is_tls { "s" } else { "" };
        let (s, admin) = (secure(config.tls.is_on()), secure(config.tls.admin));
        writeln!(f, "Tidegate {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "  console    http{s}://{listen}/")?;
        writeln!(f, "  WebSocket  ws{s}://{listen}/ws")?;
        writeln!(f, "  broker     {}", context.broker.address())?;
        writeln!(f, "  metrics    http{admin}://{admin_listen}/metrics")
    }
}

#[cfg(test)]
#[path = "app/autobahn_tests.rs"]
mod autobahn;
