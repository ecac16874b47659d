import type { NextConfig } from "next";

/** A static page: plain files that the Python server hands out; no Node server runs in production. */
const config: NextConfig = {
  output: "export",
  trailingSlash: true,
  images: { unoptimized: true },
  reactStrictMode: true,
  poweredByHeader: false,
};

export default config;
