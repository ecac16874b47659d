/**
 * The one connection to the server. Events that arrive are queued and folded once per animation frame, so that a
 * thousand at once cost one drawing. What a run has told so far comes by a REST call that does not wait for the
 * connection; the connection then brings the rest. After a lost connection every open run asks for what it missed.
 */
import { useEffect, useSyncExternalStore } from "react";
import { io, type Socket } from "socket.io-client";

import type { ErrorText, RunSummary } from "./api";
import { snapshot, type Snapshot } from "./early";
import { list, num, obj, text } from "./read";
import { setToken, token } from "./rest";
import { EMPTY, fold, type RunView } from "./store";
import type { RunEvent } from "./types";

export type Connection = "connecting" | "connected" | "disconnected" | "unauthorized";
const ACK_TIMEOUT_MS = 20_000;
/** Events folded in one frame; what is more waits for the next. */
const BATCH = 4000;

/** Something that React components may watch. */
class Watched<T> {
  private listeners = new Set<() => void>();
  constructor(public value: T) {}
  set(value: T): void {
    if (value === this.value) return;
    this.value = value;
    for (const listener of this.listeners) listener();
  }
  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };
  get = (): T => this.value;
}

export interface LiveRun {
  view: RunView;
  summary: RunSummary | null;
  loading: boolean;
  error: ErrorText | null;
}

const NEW: LiveRun = { view: EMPTY, summary: null, loading: true, error: null };

function nextFrame(work: () => void): void {
  // A hidden page draws no frames, but its state should still be right when it is shown again.
  if (document.hidden) setTimeout(work, 250);
  else requestAnimationFrame(work);
}

class Feed {
  readonly state = new Watched<LiveRun>(NEW);
  users = 0;
  private queue: RunEvent[] = [];
  private scheduled = false;
  /** Settles once what the run has told so far is here, or cannot be had this way. */
  private begun: Promise<void> | null = null;

  constructor(readonly run: string) {}

  /** Asks for what the run has told so far; where that fails, the socket's answer brings everything or says why not. */
  begin(): Promise<void> {
    this.begun ??= this.ask();
    return this.begun;
  }

  private async ask(): Promise<void> {
    try {
      const found = await snapshot(this.run);
      if (this.state.value.loading) this.show(found);
    } catch {
      // the socket's answer says what is wrong
    }
  }

  private show({ summary, events }: Snapshot): void {
    this.patch({ view: fold(EMPTY, events.map(readEvent)), summary, loading: false, error: null });
  }

  take(events: readonly RunEvent[]): void {
    for (const event of events) this.queue.push(event);
    if (!this.scheduled && this.queue.length > 0) {
      this.scheduled = true;
      nextFrame(this.flush);
    }
  }

  private flush = (): void => {
    this.scheduled = false;
    if (this.state.value.loading) return; // a snapshot is on its way and comes first
    const batch = this.queue.splice(0, BATCH);
    this.patch({ view: fold(this.state.value.view, batch) });
    if (this.queue.length > 0) this.take([]);
  };

  patch(change: Partial<LiveRun>): void {
    this.state.set({ ...this.state.value, ...change });
    if (!this.scheduled && this.queue.length > 0 && !this.state.value.loading) {
      this.scheduled = true;
      nextFrame(this.flush);
    }
  }

  /** Asks for what came after what is known, and for all that follows. */
  async subscribe(socket: Socket): Promise<void> {
    await this.begin();
    if (this.users === 0 || !socket.connected) return;
    const { view } = this.state.value;
    const request = view.next > 0 ? { run: this.run, after: view.next } : { run: this.run };
    socket.timeout(ACK_TIMEOUT_MS).emit("phase8:subscribe", request, (late: Error | null, answer: unknown) => {
      if (late !== null) {
        if (socket.connected) void this.subscribe(socket);
        return;
      }
      const reply = obj(answer);
      if (reply.error !== undefined) {
        const error = obj(reply.error);
        this.patch({
          loading: false,
          error: { what: text(error.what), where: text(error.where), fix: text(error.fix) },
        });
        return;
      }
      if ((num(reply.next) ?? 0) < view.next) {
        this.reset(socket); // the log, or the replay, has begun anew since
        return;
      }
      this.patch({
        view: fold(this.state.value.view, list(reply.events).map(readEvent)),
        summary: reply.run as RunSummary,
        loading: false,
        error: null,
      });
    });
  }

  reset(socket: Socket): void {
    this.queue = [];
    this.patch({ view: EMPTY, loading: true });
    void this.subscribe(socket);
  }
}

function readEvent(raw: unknown): RunEvent {
  const event = obj(raw);
  return {
    seq: num(event.seq) ?? 0,
    time: num(event.time) ?? 0,
    kind: text(event.kind),
    stage: typeof event.stage === "string" ? event.stage : null,
    data: obj(event.data),
  };
}

class Live {
  readonly connection = new Watched<Connection>("connecting");
  /** Summaries that changed while the page is open, by run. */
  readonly summaries = new Watched<Record<string, RunSummary>>({});
  private feeds = new Map<string, Feed>();
  private socket: Socket | null = null;
  private changed: Record<string, RunSummary> = {};
  private summariesDue = false;

  open(): Socket {
    if (this.socket !== null) return this.socket;
    // A WebSocket at once: over a slow line each request before it costs a round trip. A proxy may allow none.
    const socket = io({
      auth: (give) => give({ token: token() ?? "" }),
      reconnectionDelayMax: 3000,
      transports: ["websocket", "polling"],
      tryAllTransports: true,
    });
    this.socket = socket;
    socket.on("connect", () => {
      this.connection.set("connected");
      for (const feed of this.feeds.values()) void feed.subscribe(socket);
    });
    socket.on("disconnect", () => this.connection.set("disconnected"));
    socket.on("connect_error", (error: Error) => {
      const refused = error.message === "unauthorized";
      this.connection.set(refused ? "unauthorized" : "disconnected");
    });
    socket.onAny((name: string, payload: unknown) => this.receive(socket, name, obj(payload)));
    return socket;
  }

  authorize(value: string): void {
    setToken(value);
    this.connection.set("connecting");
    this.socket?.disconnect().connect();
  }

  private receive(socket: Socket, name: string, payload: Record<string, unknown>): void {
    const run = text(payload.run);
    if (name === "phase8:run_update") {
      this.update(payload as unknown as RunSummary);
    } else if (name === "phase8:reset") {
      this.feeds.get(run)?.reset(socket);
    } else if (name === "phase8:batch") {
      this.feeds.get(run)?.take(list(payload.events).map(readEvent));
    } else if (name.startsWith("phase8:")) {
      this.feeds.get(run)?.take([readEvent(payload)]);
    }
  }

  /** A summary that came by socket or as the answer to a control call. */
  update(summary: RunSummary): void {
    this.changed[summary.run] = summary;
    if (this.summariesDue) return;
    this.summariesDue = true;
    nextFrame(() => {
      this.summariesDue = false;
      const changed = this.changed;
      this.changed = {};
      for (const [run, value] of Object.entries(changed)) this.feeds.get(run)?.patch({ summary: value });
      this.summaries.set({ ...this.summaries.value, ...changed });
    });
  }

  feed(run: string): Feed {
    let feed = this.feeds.get(run);
    if (feed === undefined) {
      feed = new Feed(run);
      this.feeds.set(run, feed);
    }
    return feed;
  }

  hold(feed: Feed): () => void {
    feed.users += 1;
    this.feeds.set(feed.run, feed);
    const socket = this.open();
    if (feed.users === 1) void (socket.connected ? feed.subscribe(socket) : feed.begin());
    return () => {
      feed.users -= 1;
      if (feed.users > 0) return;
      this.feeds.delete(feed.run);
      socket.emit("phase8:unsubscribe", { run: feed.run });
    };
  }
}

export const live = new Live();

const neverConnected = (): Connection => "connecting";
const newRun = (): LiveRun => NEW;

export function useConnection(): Connection {
  useEffect(() => {
    live.open();
  }, []);
  return useSyncExternalStore(live.connection.subscribe, live.connection.get, neverConnected);
}

/** A run, live for as long as the component is shown. */
export function useRun(run: string): LiveRun {
  const feed = live.feed(run);
  useEffect(() => live.hold(feed), [feed]);
  return useSyncExternalStore(feed.state.subscribe, feed.state.get, newRun);
}

const NO_SUMMARIES: Record<string, RunSummary> = {};
export function useSummaries(): Record<string, RunSummary> {
  useEffect(() => {
    live.open();
  }, []);
  return useSyncExternalStore(live.summaries.subscribe, live.summaries.get, () => NO_SUMMARIES);
}
