//! Every metric: its name, its help, and the function that counts it. Labels come from our own enums, never from clients.

use std::sync::{LazyLock, Once};
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::access::{Failure, Reason, Source};
use crate::mqtt::{Message, Qos};
use crate::wire::{Close, Code};

/// Seconds from a broker read to the socket write, and from a publish to its ack.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The result of a credential that is good.
const GOOD: &str = "ok";

const UPKEEP: Duration = Duration::from_secs(5);

/// The state of a session's broker link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Connected.
    Up,
    /// Being restored.
    Down,
}

/// What came of a connection to a listener with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// A handshake.
    Ok,
    /// A handshake that failed: no version in common, say, or no certificate that is believed.
    Failed,
    /// Nothing in time.
    Timeout,
    /// A request without TLS.
    Plain,
}

impl Handshake {
    /// All of them.
    pub const ALL: [Handshake; 4] = [Handshake::Ok, Handshake::Failed, Handshake::Timeout, Handshake::Plain];

    /// As a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Handshake::Ok => "ok",
            Handshake::Failed => "failed",
            Handshake::Timeout => "timeout",
            Handshake::Plain => "plain",
        }
    }
}

/// Installs the recorder; the handle renders the page for Prometheus.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .install_recorder()?;
    describe();
    let rustc = option_env!("BUILT_BY_RUSTC").unwrap_or("unknown");
    let embedded = if cfg!(feature = "embedded-broker") { "true" } else { "false" };
    gauge!("tidegate_build_info", "version" => env!("CARGO_PKG_VERSION"), "rustc" => rustc, "embedded_broker" => embedded).set(1);
    LazyLock::force(&METRICS);
    Ok(handle)
}

/// Sorts the samples of histograms into their buckets, which would pile up where nobody looks at the page.
pub async fn upkeep(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        handle.run_upkeep();
    }
}

/// The event loop came so late to a timer, and does not keep up or does.
pub fn event_loop(stall: Duration, is_overloaded: bool) {
    METRICS.stall.record(stall);
    METRICS.overloaded.set(if is_overloaded { 1.0 } else { 0.0 });
}

/// The runtime of the event loop: its tasks, those that wait for any worker, and the share of their time in which the workers work.
pub fn runtime(tasks: usize, queued: usize, busy: f64) {
    METRICS.runtime_tasks.set(tasks as f64);
    METRICS.runtime_queued.set(queued as f64);
    METRICS.runtime_busy.set(busy);
}

/// The page for Prometheus, process metrics included.
pub fn render(handle: &PrometheusHandle) -> String {
    static DESCRIBED: Once = Once::new();
    let process = metrics_process::Collector::default();
    DESCRIBED.call_once(|| process.describe());
    process.collect();
    handle.run_upkeep();
    handle.render()
}

/// A session was opened, and is open until what this gives is dropped.
pub fn session_opened() -> OpenSession {
    METRICS.sessions_opened.increment(1);
    METRICS.sessions_open.increment(1);
    OpenSession { close: Close::Fault }
}

/// A session that is counted as open; dropped without a word, by a panic say, it has ended by a fault.
#[derive(Debug)]
pub struct OpenSession {
    close: Close,
}

impl OpenSession {
    /// The session has ended.
    pub fn closed(mut self, close: Close) {
        self.close = close;
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        METRICS.sessions_open.decrement(1);
        closed(self.close);
    }
}

/// A task has panicked.
pub fn panicked() {
    METRICS.panics.increment(1);
}

/// A WebSocket has ended: a session, or one that was turned away or left the queue.
pub fn closed(close: Close) {
    counter!("tidegate_sessions_closed_total", "code" => close.label()).increment(1);
}

/// A connection was turned away.
pub fn connection_refused(reason: Reason) {
    counter!("tidegate_connections_refused_total", "reason" => reason.label()).increment(1);
}

/// So many connections more, or fewer, have said nothing yet.
pub fn unauthenticated(more: f64) {
    METRICS.unauthenticated.increment(more);
}

/// So many WebSockets wait for a place.
pub fn queued(count: usize) {
    METRICS.queued.set(count as f64);
}

/// A frame was turned down, or an entry of one.
pub fn refused(code: Code) {
    counter!("tidegate_refusals_total", "code" => code.name()).increment(1);
}

/// The subscriptions of a session changed in number.
pub fn subscriptions_changed(before: usize, after: usize) {
    METRICS.subscriptions.increment(after as f64 - before as f64);
}

/// A message of a browser was handed to the broker's side.
pub fn message_up(message: &Message) {
    METRICS.up.count(message, 1);
}

/// A message was written to a browser.
pub fn message_down(message: &Message) {
    METRICS.down.count(message, 1);
}

/// A delivery was written so long after it was read from the broker.
pub fn delivered(after: Duration) {
    METRICS.delivery.record(after);
}

/// A message was written to so many browsers, so long after it was read from the broker.
pub fn delivered_to(browsers: usize, message: &Message, after: Duration) {
    METRICS.down.count(message, browsers as u64);
    METRICS.delivery.record_many(after, browsers);
}

/// A publish was answered so long after its frame was read.
pub fn publish_answered(qos: Qos, after: Duration) {
    match qos {
        Qos::AtMostOnce => {}
        Qos::AtLeastOnce => METRICS.ack_qos_1.record(after),
        Qos::ExactlyOnce => METRICS.ack_qos_2.record(after),
    }
}

/// An outbox changed from so many deliveries to so many.
pub fn outbox_deliveries_changed(before: usize, after: usize) {
    METRICS.outbox_deliveries.increment(after as f64 - before as f64);
}

/// What a session is charged for its outbox changed from so many bytes to so many.
pub fn outbox_bytes_changed(before: usize, after: usize) {
    METRICS.outbox_bytes.increment(after as f64 - before as f64);
}

/// All outboxes together may hold so many bytes.
pub fn outbox_limit(bytes: usize) {
    METRICS.outbox_limit.set(bytes as f64);
}

/// Deliveries were dropped because their browser read nothing.
pub fn deliveries_dropped(count: usize) {
    if count > 0 {
        METRICS.dropped.increment(count as u64);
    }
}

/// Newer deliveries for their topics took the place of so many.
pub fn deliveries_conflated(count: usize) {
    if count > 0 {
        METRICS.conflated.increment(count as u64);
    }
}

/// A delivery with delta changed nothing, and was left out: so many bytes less.
pub fn delivery_unchanged(saved: usize) {
    METRICS.unchanged.increment(1);
    METRICS.delta_saved.increment(saved as u64);
}

/// A delivery came as a patch: so many bytes less.
pub fn delivery_patched(saved: usize) {
    METRICS.delta_saved.increment(saved as u64);
}

/// A delivery for a subscription that the session never made was left to whoever made it.
pub fn delivery_withheld() {
    METRICS.withheld.increment(1);
}

/// A delivery was left out because the session may not have it.
pub fn delivery_refused() {
    METRICS.refused_deliveries.increment(1);
}

/// A session's broker link changed its state; nothing stands for a link that is not there yet or no more.
pub fn link_changed(before: Option<LinkState>, after: Option<LinkState>) {
    let links = |state| if state == LinkState::Up { &METRICS.links_up } else { &METRICS.links_down };
    if let Some(state) = before {
        links(state).decrement(1);
    }
    if let Some(state) = after {
        links(state).increment(1);
    }
}

/// A lost link is back.
pub fn broker_reconnected() {
    METRICS.reconnects.increment(1);
}

/// The embedded broker had died, and another was started.
pub fn embedded_restarted() {
    METRICS.embedded_restarts.increment(1);
}

/// The configuration was read again, and put in force or turned down.
pub fn configuration_reloaded(applied: bool) {
    let result = if applied { "applied" } else { "refused" };
    counter!("tidegate_configuration_reloads_total", "result" => result).increment(1);
}

/// An operator's request was answered with this status, on this route.
pub fn admin_request(route: &'static str, status: u16) {
    counter!("tidegate_admin_requests_total", "route" => route, "status" => status_label(status)).increment(1);
}

/// A program's publish over HTTP was answered with this status.
pub fn http_publish(status: u16) {
    counter!("tidegate_http_publishes_total", "status" => status_label(status)).increment(1);
}

/// The statuses that the gateway answers with.
fn status_label(status: u16) -> &'static str {
    match status {
        200 => "200",
        201 => "201",
        202 => "202",
        204 => "204",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        413 => "413",
        415 => "415",
        422 => "422",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        _ => "other",
    }
}

/// A credential was judged by this source, and was good or failed.
pub fn authenticated(source: Source, failure: Option<&Failure>) {
    let result = failure.map_or(GOOD, Failure::name);
    counter!("tidegate_authentications_total", "source" => source.name(), "result" => result).increment(1);
}

/// The issuer's keys were fetched, or could not be.
pub fn jwks_refreshed(fetched: bool) {
    let result = if fetched { "fetched" } else { "failed" };
    counter!("tidegate_jwks_refreshes_total", "result" => result).increment(1);
}

/// The hook was asked, and took so long to answer, or until its time was up.
pub fn hook_asked(took: Duration) {
    METRICS.hook.record(took);
}

/// A connection to a listener with TLS came to this.
pub fn tls_handshake(result: Handshake) {
    counter!("tidegate_tls_handshakes_total", "result" => result.label()).increment(1);
}

/// The TLS files were read again, and put in force or turned down.
pub fn tls_reloaded(applied: bool) {
    let result = if applied { "applied" } else { "refused" };
    counter!("tidegate_tls_reloads_total", "result" => result).increment(1);
}

/// The gateway's certificate is good until then, in Unix seconds.
pub fn tls_certificate_not_after(seconds: i64) {
    gauge!("tidegate_tls_certificate_not_after_timestamp_seconds").set(seconds as f64);
}

/// All lists of revoked certificates are good until then, in Unix seconds.
pub fn tls_crl_next_update(seconds: i64) {
    gauge!("tidegate_tls_crl_next_update_timestamp_seconds").set(seconds as f64);
}

/// Clients have begun frames of so many bytes and not finished them.
pub fn unfinished(bytes: u64) {
    METRICS.unfinished.set(bytes as f64);
}

/// So many lines of this kind were written to the audit log.
pub fn audit_written(event: &'static str, count: u64) {
    counter!("tidegate_audit_events_total", "event" => event).increment(count);
}

/// So many events were not recorded because too many waited.
pub fn audit_dropped(count: u64) {
    METRICS.audit_dropped.increment(count);
}

/// So many events more, or fewer, wait to be written to the audit log.
pub fn audit_queued(more: f64) {
    METRICS.audit_queued.increment(more);
}

/// A write to the audit log has failed.
pub fn audit_write_failed() {
    METRICS.audit_write_errors.increment(1);
}

/// Whether the broker can be reached.
pub fn broker_reachable(reachable: bool) {
    METRICS.reachable.set(if reachable { 1.0 } else { 0.0 });
}

/// Handles that are looked up once, for what happens with every message.
struct Metrics {
    sessions_open: Gauge,
    sessions_opened: Counter,
    unauthenticated: Gauge,
    queued: Gauge,
    subscriptions: Gauge,
    up: Direction,
    down: Direction,
    delivery: Histogram,
    ack_qos_1: Histogram,
    ack_qos_2: Histogram,
    outbox_deliveries: Gauge,
    outbox_bytes: Gauge,
    outbox_limit: Gauge,
    dropped: Counter,
    conflated: Counter,
    unchanged: Counter,
    delta_saved: Counter,
    withheld: Counter,
    refused_deliveries: Counter,
    links_up: Gauge,
    links_down: Gauge,
    reconnects: Counter,
    embedded_restarts: Counter,
    reachable: Gauge,
    hook: Histogram,
    panics: Counter,
    unfinished: Gauge,
    stall: Histogram,
    overloaded: Gauge,
    runtime_tasks: Gauge,
    runtime_queued: Gauge,
    runtime_busy: Gauge,
    audit_dropped: Counter,
    audit_queued: Gauge,
    audit_write_errors: Counter,
}

struct Direction([(Counter, Counter); 3]);

impl Direction {
    fn new(direction: &'static str) -> Direction {
        Direction(["0", "1", "2"].map(|qos| {
            (
                counter!("tidegate_messages_total", "direction" => direction, "qos" => qos),
                counter!("tidegate_message_bytes_total", "direction" => direction, "qos" => qos),
            )
        }))
    }

    fn count(&self, message: &Message, copies: u64) {
        let (messages, bytes) = &self.0[usize::from(message.qos.number())];
        messages.increment(copies);
        bytes.increment(message.payload.len() as u64 * copies);
    }
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    // What may alert is there from the start: a counter that is born at 1 has not increased.
    for close in Close::ALL {
        counter!("tidegate_sessions_closed_total", "code" => close.label()).increment(0);
    }
    for code in Code::ALL {
        counter!("tidegate_refusals_total", "code" => code.name()).increment(0);
    }
    for result in ["applied", "refused"] {
        counter!("tidegate_configuration_reloads_total", "result" => result).increment(0);
        counter!("tidegate_tls_reloads_total", "result" => result).increment(0);
    }
    for handshake in Handshake::ALL {
        counter!("tidegate_tls_handshakes_total", "result" => handshake.label()).increment(0);
    }
    for source in Source::ALL {
        for result in [GOOD].into_iter().chain(Failure::NAMES) {
            counter!("tidegate_authentications_total", "source" => source.name(), "result" => result).increment(0);
        }
    }
    for result in ["fetched", "failed"] {
        counter!("tidegate_jwks_refreshes_total", "result" => result).increment(0);
    }
    for reason in Reason::ALL {
        counter!("tidegate_connections_refused_total", "reason" => reason.label()).increment(0);
    }
    Metrics {
        sessions_open: gauge!("tidegate_sessions_open"),
        sessions_opened: counter!("tidegate_sessions_opened_total"),
        unauthenticated: gauge!("tidegate_connections_unauthenticated"),
        queued: gauge!("tidegate_sessions_queued"),
        subscriptions: gauge!("tidegate_subscriptions"),
        up: Direction::new("uplink"),
        down: Direction::new("downlink"),
        delivery: histogram!("tidegate_delivery_seconds"),
        ack_qos_1: histogram!("tidegate_publish_ack_seconds", "qos" => "1"),
        ack_qos_2: histogram!("tidegate_publish_ack_seconds", "qos" => "2"),
        outbox_deliveries: gauge!("tidegate_outbox_deliveries"),
        outbox_bytes: gauge!("tidegate_outbox_bytes"),
        outbox_limit: gauge!("tidegate_outbox_limit_bytes"),
        dropped: counter!("tidegate_deliveries_dropped_total"),
        conflated: counter!("tidegate_deliveries_conflated_total"),
        unchanged: counter!("tidegate_deliveries_unchanged_total"),
        delta_saved: counter!("tidegate_delta_saved_bytes_total"),
        withheld: counter!("tidegate_deliveries_withheld_total"),
        refused_deliveries: counter!("tidegate_deliveries_refused_total"),
        links_up: gauge!("tidegate_broker_links", "state" => "up"),
        links_down: gauge!("tidegate_broker_links", "state" => "down"),
        reconnects: counter!("tidegate_broker_reconnects_total"),
        embedded_restarts: counter!("tidegate_embedded_broker_restarts_total"),
        reachable: gauge!("tidegate_broker_reachable"),
        hook: histogram!("tidegate_auth_hook_seconds"),
        panics: counter!("tidegate_panics_total"),
        unfinished: gauge!("tidegate_unfinished_bytes"),
        stall: histogram!("tidegate_event_loop_stall_seconds"),
        overloaded: gauge!("tidegate_overloaded"),
        runtime_tasks: gauge!("tidegate_runtime_tasks"),
        runtime_queued: gauge!("tidegate_runtime_queued_tasks"),
        runtime_busy: gauge!("tidegate_runtime_busy_ratio"),
        audit_dropped: counter!("tidegate_audit_dropped_total"),
        audit_queued: gauge!("tidegate_audit_queued"),
        audit_write_errors: counter!("tidegate_audit_write_errors_total"),
    }
});

fn describe() {
    describe_gauge!("tidegate_build_info", "Always 1; the labels say what was built.");
    describe_gauge!("tidegate_sessions_open", "Browser sessions that are open.");
    describe_counter!("tidegate_sessions_opened_total", "Browser sessions that were opened.");
    describe_counter!(
        "tidegate_sessions_closed_total",
        "Browser sessions that have ended or were turned away, by WebSocket close code; 1006 is a lost connection."
    );
    describe_counter!(
        "tidegate_connections_refused_total",
        "Connections that were turned away, by the setting that says so; accept: the system gave none."
    );
    describe_gauge!("tidegate_connections_unauthenticated", "Connections that have sent no frame yet.");
    describe_gauge!("tidegate_sessions_queued", "WebSockets that wait for a place.");
    describe_gauge!("tidegate_subscriptions", "Subscriptions of all open sessions.");
    describe_counter!(
        "tidegate_messages_total",
        "Messages, by direction (uplink: from browsers; downlink: to browsers) and QoS."
    );
    describe_counter!("tidegate_message_bytes_total", Unit::Bytes, "Payload bytes of messages, by direction and QoS.");
    describe_counter!("tidegate_refusals_total", "Frames that were turned down, and entries of them, by error code.");
    describe_histogram!(
        "tidegate_delivery_seconds",
        Unit::Seconds,
        "From reading a message from the broker to writing it to a browser's socket; without what maxRate or batch lets wait."
    );
    describe_histogram!(
        "tidegate_publish_ack_seconds",
        Unit::Seconds,
        "From reading a publish of QoS 1 or 2 to the broker's confirmation."
    );
    describe_gauge!(
        "tidegate_outbox_deliveries",
        "Deliveries that wait for their browsers, a few of each session left out."
    );
    describe_gauge!(
        "tidegate_outbox_bytes",
        Unit::Bytes,
        "Memory of the deliveries that wait for their browsers or for their sockets, roughly; a few KiB of each session left out."
    );
    describe_gauge!(
        "tidegate_outbox_limit_bytes",
        Unit::Bytes,
        "The most that tidegate_outbox_bytes may come to: delivery.max_total_bytes."
    );
    describe_counter!(
        "tidegate_deliveries_dropped_total",
        "Deliveries of QoS 0 that were dropped because their browser read nothing."
    );
    describe_counter!(
        "tidegate_deliveries_conflated_total",
        "Deliveries with maxRate that a newer one for their topic took the place of."
    );
    describe_counter!(
        "tidegate_deliveries_unchanged_total",
        "Deliveries with delta that were left out because they changed nothing."
    );
    describe_counter!(
        "tidegate_delta_saved_bytes_total",
        Unit::Bytes,
        "Bytes of payloads that delta left out, with those of unchanged deliveries."
    );
    describe_counter!(
        "tidegate_deliveries_withheld_total",
        "Messages left to another connection of the same client identifier, which subscribed to them."
    );
    describe_counter!(
        "tidegate_deliveries_refused_total",
        "Messages that the broker had for a session and that its rights keep from it; they are confirmed and dropped."
    );
    describe_gauge!(
        "tidegate_unfinished_bytes",
        Unit::Bytes,
        "Bytes of large frames that browsers have begun to send and not finished."
    );
    describe_histogram!(
        "tidegate_event_loop_stall_seconds",
        Unit::Seconds,
        "How late the event loop came to a timer that fires fifty times a second: as late as to everything else."
    );
    describe_gauge!(
        "tidegate_overloaded",
        "Whether new WebSockets are turned away because the event loop is late: 1 or 0."
    );
    describe_gauge!("tidegate_runtime_tasks", "Tasks of the event loop that are alive.");
    describe_gauge!("tidegate_runtime_queued_tasks", "Tasks of the event loop that wait for any of its workers.");
    describe_gauge!(
        "tidegate_runtime_busy_ratio",
        "The share of the last second in which the event loop's workers had something to do, 0 to 1."
    );
    describe_counter!("tidegate_connections_refused_total", "Connections that were turned away, by reason.");
    describe_gauge!("tidegate_broker_links", "Broker links of sessions, by state.");
    describe_counter!("tidegate_broker_reconnects_total", "Broker links that were lost and restored.");
    describe_counter!(
        "tidegate_embedded_broker_restarts_total",
        "Times that the embedded broker had died and was started anew, without what it stored."
    );
    describe_counter!(
        "tidegate_configuration_reloads_total",
        "Wishes to read the configuration again, by result: applied or refused."
    );
    describe_counter!(
        "tidegate_admin_requests_total",
        "Requests to the admin API, by route and by the HTTP status of the answer."
    );
    describe_counter!(
        "tidegate_http_publishes_total",
        "Publishes over HTTP on the listener for browsers, by the HTTP status of the answer."
    );
    describe_counter!(
        "tidegate_authentications_total",
        "Credentials that were judged, by the source that judged them and the result: ok, expired, not_yet_valid, refused or unavailable."
    );
    describe_counter!("tidegate_jwks_refreshes_total", "Fetches of the issuer's keys, by result: fetched or failed.");
    describe_histogram!(
        "tidegate_auth_hook_seconds",
        Unit::Seconds,
        "How long the authentication hook took to answer, or until its time was up."
    );
    describe_counter!("tidegate_audit_events_total", "Lines that were written to the audit log, by event.");
    describe_counter!(
        "tidegate_audit_dropped_total",
        "Events that the audit log lacks because too many waited to be written (audit.queue)."
    );
    describe_gauge!("tidegate_audit_queued", "Events that wait to be written to the audit log.");
    describe_counter!("tidegate_audit_write_errors_total", "Writes to the audit log that failed; each is tried again.");
    describe_counter!(
        "tidegate_tls_handshakes_total",
        "Connections to listeners with TLS, by what came of them: ok, failed, timeout, or plain, a request without TLS."
    );
    describe_counter!(
        "tidegate_tls_reloads_total",
        "Times that the TLS files were read again, by result: applied or refused."
    );
    describe_gauge!(
        "tidegate_tls_certificate_not_after_timestamp_seconds",
        Unit::Seconds,
        "When the certificate of the gateway expires, in Unix time."
    );
    describe_gauge!(
        "tidegate_tls_crl_next_update_timestamp_seconds",
        Unit::Seconds,
        "When the first of the lists of revoked certificates is out of date, in Unix time."
    );
    describe_counter!("tidegate_panics_total", "Faults of the program, each of which ended the task that it was in.");
    describe_gauge!("tidegate_broker_reachable", "Whether the broker can be reached: 1 or 0.");
}
