FROM rust:1.95-bookworm AS builder
WORKDIR /build
COPY . .
# The caches keep the crates and what was compiled of them: after a change only Tidegate itself is built again.
# They are gone when the line is done, so the binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --locked --profile dist --bin tidegate \
    && cp target/dist/tidegate /usr/local/bin/tidegate

FROM debian:bookworm-slim
# The authorities that `mqtts://` trusts unless broker.ca_file names others.
COPY --from=builder /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=builder /usr/local/bin/tidegate /usr/local/bin/tidegate
COPY deploy/tidegate.toml /etc/tidegate/tidegate.toml
ENV TIDEGATE_CONFIG=/etc/tidegate/tidegate.toml

# Ports above 1024, no file written, no privilege needed.
USER 65532:65532
# Browsers; metrics and health.
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
# Healthy is ready: the broker answers. The image has no HTTP client, but its bash can open a connection.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["tidegate"]
