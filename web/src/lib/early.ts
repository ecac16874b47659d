/**
 * What a run has told so far, by REST. The page of a run asks for it from a script in its head, while the page's own
 * scripts are still on the line; over a slow line that saves the round trips of a connection that is only made later.
 */
import type { Events, RunSummary, Status } from "./api";
import { BASE, get, KEY } from "./rest";

export interface Snapshot {
  summary: RunSummary;
  events: Events["events"];
}

interface Early {
  run: string;
  answer: Promise<[Status, Events]>;
}

declare global {
  interface Window {
    phase8Early?: Early;
  }
}

const RUN = "RUN";
const PATHS = [`/status/${RUN}`, `/runs/${RUN}/events?compact=true&limit=100000`] as const;

/** Stands in the head of a run's page, allowed there by its hash; finds the token as `token()` does. */
export const EARLY = `(()=>{
const run=new URLSearchParams(location.search).get("id")??"";
if(!/^[0-9a-z-]+$/.test(run))return;
const token=new URLSearchParams(location.hash.slice(1)).get("token")??sessionStorage.getItem("${KEY}");
const headers=token?{Authorization:"Bearer "+token}:{};
const ask=(path)=>fetch("${BASE}"+path.replace("${RUN}",run),{headers}).then((got)=>got.ok?got.json():Promise.reject(got));
const answer=Promise.all(${JSON.stringify(PATHS)}.map(ask));
answer.catch(()=>{});
window.phase8Early={run,answer};
})()`;

/** The run's summary and its events so far, without progress that later progress overtook. */
export async function snapshot(run: string): Promise<Snapshot> {
  const early = window.phase8Early;
  delete window.phase8Early; // good for one use: what is opened later wants what is so then
  const [told, log] = await (early?.run === run
    ? early.answer
    : Promise.all([get<Status>(PATHS[0].replace(RUN, run)), get<Events>(PATHS[1].replace(RUN, run))]));
  return { summary: told.summary, events: log.events };
}
