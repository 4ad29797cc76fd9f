# Debian's Prometheus, Alertmanager and nginx, in place of images from a registry.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
# hadolint ignore=DL3008
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        prometheus prometheus-alertmanager nginx-light \
    && rm -rf /var/lib/apt/lists/* && install -d -o 65534 -g 65534 /prometheus /alertmanager
