import type { Metadata, Viewport } from "next";
import type { ReactNode } from "react";

import { Shell } from "@/components/shell";
import "./globals.css";

export const metadata: Metadata = {
  title: { default: "Runs · Phase 8", template: "%s · Phase 8" },
  description: "Watch a compression run, understand it, steer it",
};

export const viewport: Viewport = { width: "device-width", initialScale: 1, colorScheme: "light dark" };

/** Before the first drawing, so that a chosen theme does not flash. */
const THEME = `try{const t=localStorage.getItem("phase8-theme");if(t==="light"||t==="dark")document.documentElement.dataset.theme=t}catch{}`;

export default function Layout({ children }: { children: ReactNode }) {
  return (
    <html lang="en" suppressHydrationWarning>
      <head>
        <script dangerouslySetInnerHTML={{ __html: THEME }} />
      </head>
      <body>
        <Shell>{children}</Shell>
      </body>
    </html>
  );
}
