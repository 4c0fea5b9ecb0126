//! The page at `/` and its parts, as they were when the program was built.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, header};
use axum::routing::get;

use crate::session::Context;

const PAGES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("../../console/index.html")),
    ("/console.css", "text/css; charset=utf-8", include_str!("../../console/console.css")),
    ("/console.js", "text/javascript; charset=utf-8", include_str!("../../console/console.js")),
    ("/favicon.svg", "image/svg+xml", include_str!("../../console/favicon.svg")),
];

/// Everything from here, and sockets to anywhere: the page lets one choose the gateway.
const POLICY: &str =
    "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page has no use for, nobody who got into it shall have.
const PERMISSIONS: &str = "accelerometer=(), autoplay=(), camera=(), display-capture=(), encrypted-media=(), fullscreen=(), \
                           geolocation=(), gyroscope=(), magnetometer=(), microphone=(), midi=(), payment=(), \
                           publickey-credentials-get=(), screen-wake-lock=(), usb=(), web-share=(), xr-spatial-tracking=()";

/// The routes of the page.
pub fn routes() -> Router<Arc<Context>> {
    PAGES.into_iter().fold(Router::new(), |router, (path, kind, body)| {
        let headers: [(HeaderName, &str); 9] = [
            (header::CONTENT_TYPE, kind),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (HeaderName::from_static("permissions-policy"), PERMISSIONS),
        ];
        router.route(path, get(move || std::future::ready((headers, body))))
    })
}
