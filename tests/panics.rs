//! A fault in one session ends that session, and leaves nothing behind.

use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{Sink, Stream};
use tidegate::audit::Audit;
use tidegate::auth::{self, Judge};
use tidegate::broker::{self, Broker};
use tidegate::log::Log;
use tidegate::overload::Overload;
use tidegate::session::{
    Arrival, Context, Doors, Entrance, Inbound, Lobby, Outbound, Pass, Quotas, Reloads, Roster, Settings, Socket,
};
use tidegate::shutdown::Drain;
use tidegate::wire::Close;
use tidegate::{access, app, delivery, metrics, session, wire};
use tokio_util::task::TaskTracker;

/// Brings these frames, and panics when it is to take one.
struct Faulty(Vec<&'static str>);

impl Stream for Faulty {
    type Item = Result<Inbound<&'static str>, Close>;
    fn poll_next(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        match self.0.pop() {
            Some(frame) => Poll::Ready(Some(Ok(Inbound::Text(frame)))),
            None => Poll::Pending,
        }
    }
}

impl Sink<Outbound> for Faulty {
    type Error = Close;
    fn poll_ready(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Result<(), Close>> {
        // While the session waits for its link it is in the roster.
        if self.0.is_empty() { panic!("a fault of the test's own") } else { Poll::Pending }
    }
    fn start_send(self: Pin<&mut Self>, _: Outbound) -> Result<(), Close> {
        Ok(())
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Result<(), Close>> {
        Poll::Pending
    }
    fn poll_close(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Result<(), Close>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket for Faulty {
    type Text = &'static str;
    fn direct(&self) -> Option<Arc<dyn broker::Direct>> {
        None
    }

    fn written(&self) -> u64 {
        0
    }

    fn unwritten(&self) -> usize {
        0
    }
}

#[tokio::test]
async fn a_session_that_panics_leaves_no_gauge_and_no_place_in_the_roster() {
    let page = metrics::install().expect("the only recorder");
    let metric = |name: &str| -> f64 {
        let page = metrics::render(&page);
        let line = page.lines().find(|line| line.rsplit_once(' ').is_some_and(|(metric, _)| metric == name));
        line.and_then(|line| line.rsplit_once(' ')).and_then(|(_, value)| value.parse().ok()).unwrap_or_default()
    };
    app::tell_panics();
    let (tasks, drain) = (TaskTracker::new(), Drain::default());
    let nowhere = broker::Config { url: "mqtt://127.0.0.1:1".parse().expect("a URL"), ..broker::Config::default() };
    let closing = drain.begun().clone();
    let one_place = access::Config { max: NonZeroUsize::MIN, ..access::Config::default() };
    let context = Arc::new(Context {
        settings: ArcSwap::from_pointee(Settings {
            session: session::Config::default(),
            wire: wire::Config::default(),
            delivery: delivery::Config::default(),
            doors: Doors::default(),
            judge: Judge::new(&auth::Config::default(), Arc::default()).expect("nothing to read"),
            policy: Arc::default(),
        }),
        broker_timeout: Duration::from_secs(3600),
        broker: Broker::start(nowhere, tasks.clone(), closing.clone()).expect("nothing to start"),
        roster: Roster::default(),
        entrance: Entrance::new(&one_place),
        lobby: Lobby::new(&one_place),
        tasks: tasks.clone(),
        closing,
        drain,
        overload: Overload::new(Duration::from_secs(3600)),
        revoked: Arc::default(),
        reloads: Reloads::default(),
        log: Log::default(),
        audit: Audit::default(),
        quotas: Quotas::default(),
    });
    for sessions in 1..=2 {
        // The last comes first. The second session waits for the first's place, if that was not left.
        let socket = Faulty(vec![r#"{"type":"auth","clientId":"anna"}"#, r#"{"type":"auth","clean":"yes"}"#]);
        let settings = context.settings.load_full();
        let client = [127, 0, 0, 1].into();
        let pass = context.entrance.arrive(client);
        assert_eq!(pass.as_ref().map(Pass::position), Ok(None), "there is a place at once");
        let arrival = Box::new(Arrival { credential: None, vouching: None, client, pass, newcomer: None });
        let ended = tasks.spawn(session::run(socket, context.clone(), settings, arrival)).await;
        assert!(ended.expect_err("it panics").is_panic());
        assert_eq!(metric("tidegate_panics_total"), f64::from(sessions));
        assert_eq!(metric("tidegate_sessions_open"), 0.0);
        assert_eq!(metric(r#"tidegate_sessions_closed_total{code="1011"}"#), f64::from(sessions));
    }
    // Whoever holds a place in the roster is waited for, and so is every link.
    context.closing.cancel();
    tasks.close();
    tokio::time::timeout(Duration::from_secs(20), tasks.wait()).await.expect("nothing is left");
    assert_eq!(metric(r#"tidegate_broker_links{state="down"}"#), 0.0);
}
