/** What frames every page: the header, the state of the connection, the choice of light or dark. */
"use client";

import { usePathname } from "next/navigation";
import { useEffect, useState, useSyncExternalStore, type FormEvent, type ReactNode } from "react";

import { Button } from "@/components/basics";
import { Link } from "@/components/link";
import { live, useConnection } from "@/lib/live";
import { Icon, type IconName } from "./icons";

export function Shell({ children }: { children: ReactNode }) {
  const connection = useConnection();
  const path = usePathname();
  const at = (href: string) => (path === href ? ({ "aria-current": "page" } as const) : {});
  return (
    <>
      <a
        href="#main"
        className="sr-only focus:not-sr-only focus:absolute focus:z-10 focus:m-2 focus:rounded focus:bg-card focus:p-2"
      >
        Skip to the content
      </a>
      <header className="border-b border-line bg-card">
        <div className="mx-auto flex max-w-[88rem] flex-wrap items-center gap-x-5 gap-y-1 px-3 py-2 sm:px-5">
          <Link href="/" className="inline-flex items-center gap-2 font-semibold">
            <Mark />
            Phase 8
          </Link>
          <nav aria-label="Pages" className="flex gap-4 text-[0.9rem]">
            <Link href="/" {...at("/")} className="underline-offset-4 hover:underline aria-[current]:font-semibold">
              Runs
            </Link>
            <Link
              href="/compare/"
              {...at("/compare/")}
              className="underline-offset-4 hover:underline aria-[current]:font-semibold"
            >
              Compare
            </Link>
          </nav>
          <div className="ml-auto flex items-center gap-2">
            <ConnectionState connection={connection} />
            <Theme />
          </div>
        </div>
      </header>
      {connection === "disconnected" && (
        <p role="status" className="border-b border-line bg-raised px-4 py-1.5 text-center text-[0.88rem]">
          No connection to the server. What is shown is the last known state; the page goes on by itself once the server
          answers.
        </p>
      )}
      <main id="main" tabIndex={-1} className="mx-auto max-w-[88rem] px-3 py-4 outline-none sm:px-5">
        {connection === "unauthorized" ? <TokenForm /> : children}
      </main>
    </>
  );
}

/** Three bars, each shorter than the last: the stages. */
function Mark() {
  return (
    <svg viewBox="0 0 20 20" className="keeps-colour size-5" aria-hidden="true">
      <rect x="1" y="2" width="18" height="4" rx="1.5" fill="var(--seedlm)" />
      <rect x="1" y="8" width="11" height="4" rx="1.5" fill="var(--vptq)" />
      <rect x="1" y="14" width="5" height="4" rx="1.5" fill="var(--hyper)" />
    </svg>
  );
}

const WORDS = {
  connecting: "Connecting",
  connected: "Live",
  disconnected: "Disconnected",
  unauthorized: "Token needed",
} as const;
const TONES = {
  connecting: "bg-edge",
  connected: "bg-good",
  disconnected: "bg-poor",
  unauthorized: "bg-fair",
} as const;

function ConnectionState({ connection }: { connection: keyof typeof WORDS }) {
  return (
    <span
      role="status"
      data-connection={connection}
      className="inline-flex items-center gap-1.5 text-[0.82rem] text-soft"
    >
      <span className={`keeps-colour size-2 rounded-full ${TONES[connection]}`} aria-hidden="true" />
      <span className="max-sm:sr-only">{WORDS[connection]}</span>
    </span>
  );
}

function TokenForm() {
  const [value, setValue] = useState("");
  const submit = (event: FormEvent) => {
    event.preventDefault();
    live.authorize(value.trim());
  };
  return (
    <form onSubmit={submit} className="mx-auto mt-10 max-w-md space-y-3 rounded-lg border border-line bg-card p-5">
      <h1 className="text-lg font-semibold">This server asks for a token</h1>
      <p className="text-[0.9rem] text-soft">
        It was printed where the dashboard was started, in the address that ends in #token=…
      </p>
      <label className="block text-[0.9rem] font-medium">
        Token
        <input
          type="password"
          autoComplete="off"
          required
          value={value}
          onChange={(event) => setValue(event.target.value)}
          className="field mt-1 block w-full font-normal"
        />
      </label>
      <Button type="submit" kind="main">
        Go on
      </Button>
    </form>
  );
}

type ThemeName = "system" | "light" | "dark";
const NEXT: Record<ThemeName, ThemeName> = { system: "light", light: "dark", dark: "system" };
const ICONS: Record<ThemeName, IconName> = { system: "half", light: "sun", dark: "moon" };

function readTheme(): ThemeName {
  const found = document.documentElement.dataset.theme;
  return found === "light" || found === "dark" ? found : "system";
}

function Theme() {
  const [, redraw] = useState(0);
  const theme = useSyncExternalStore(nothing, readTheme, () => "system" as const);
  useEffect(() => redraw(1), []);
  const choose = () => {
    const next = NEXT[readTheme()];
    if (next === "system") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("phase8-theme");
    } else {
      document.documentElement.dataset.theme = next;
      localStorage.setItem("phase8-theme", next);
    }
    redraw((count) => count + 1);
  };
  return (
    <button
      type="button"
      onClick={choose}
      className="grid size-8 place-items-center rounded-md hover:bg-raised"
      aria-label={`Colours: ${theme}. Change to ${NEXT[theme]}`}
      title={`Colours: ${theme}`}
    >
      <Icon name={ICONS[theme]} />
    </button>
  );
}

function nothing(): () => void {
  return () => undefined;
}
