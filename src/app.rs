//! The composition root: builds the parts from the configuration, starts them, and stops them in order.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::broker::{self, Broker};
use crate::config::Config;
use crate::session::{Context, Roster, Settings};
use crate::{http, metrics, shutdown};

/// The running gateway.
pub struct App {
    listen: SocketAddr,
    admin_listen: SocketAddr,
    context: Arc<Context>,
    shutdown: shutdown::Config,
}

/// The gateway can't start; the message names the setting.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum StartError {
    #[error(transparent)]
    Broker(#[from] broker::StartError),
    #[error(transparent)]
    Listen(#[from] http::ListenError),
    #[error("the address of a listener can't be read: {0}")]
    Address(#[from] io::Error),
}

impl App {
    /// Starts everything; on the way back, browsers can connect.
    pub async fn start(config: Config, page: PrometheusHandle) -> Result<App, StartError> {
        let tasks = TaskTracker::new();
        let closing = CancellationToken::new();
        let listener = http::listen("http.listen", config.http.listen).await?;
        let admin_listener = http::listen("http.admin_listen", config.http.admin_listen).await?;
        let broker_timeout = config.broker.request_timeout;
        let broker = Broker::start(config.broker, tasks.clone(), closing.clone())?;
        let context = Arc::new(Context {
            settings: ArcSwap::from_pointee(Settings {
                session: config.session,
                wire: config.wire,
                delivery: config.delivery,
            }),
            broker_timeout,
            broker,
            roster: Roster::default(),
            tasks,
            closing,
        });
        let app = App {
            listen: listener.address()?,
            admin_listen: admin_listener.address()?,
            context: context.clone(),
            shutdown: config.shutdown,
        };
        let closing = &context.closing;
        context.tasks.spawn(closing.clone().run_until_cancelled_owned(metrics::upkeep(page.clone())));
        app.serve(http::serve(listener, context.clone(), closing.clone()));
        app.serve(http::serve_admin(admin_listener, context.clone(), page, closing.clone()));
        Ok(app)
    }

    fn serve(&self, serving: impl Future<Output = io::Result<()>> + Send + 'static) {
        self.context.tasks.spawn(async {
            if let Err(error) = serving.await {
                error!(%error, "a listener has failed");
            }
        });
    }

    /// Stops: no new connections, a `bye` to the open ones, the last requests, and the broker's goodbye.
    pub async fn stop(self) {
        info!("stopping");
        self.context.closing.cancel();
        self.context.tasks.close();
        if timeout(self.shutdown.deadline, self.context.tasks.wait()).await.is_err() {
            warn!("the deadline has passed (shutdown.deadline): what was left is cut off");
        }
    }
}

impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let App { listen, admin_listen, context, .. } = self;
        writeln!(f, "Tidegate {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(f, "  console    http://{listen}/")?;
        writeln!(f, "  WebSocket  ws://{listen}/ws")?;
        writeln!(f, "  broker     {}", context.broker.address())?;
        writeln!(f, "  metrics    http://{admin_listen}/metrics")
    }
}
