/** A prompt, and what the original and the artifact make of it, token by token as they come. */
"use client";

import { useEffect, useRef, useState, type FormEvent } from "react";

import { Button, ErrorBox, StageMark } from "@/components/basics";
import { percent, seconds } from "@/lib/format";
import { num, obj, text } from "@/lib/read";
import { asError, call } from "@/lib/rest";
import { BASELINE } from "@/lib/stages";
import type { ErrorText } from "@/lib/api";

type Side = "original" | "compressed";

interface Token {
  text: string;
  probability: number | null;
  ms: number | null;
}

interface Answer {
  tokens: Token[];
  end: { tokens: number; seconds: number; reason: string } | null;
}

const NO_ANSWER: Answer = { tokens: [], end: null };

/** Calls `take` with each line of a streamed answer. */
async function lines(response: Response, take: (line: unknown) => void): Promise<void> {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (reader === undefined) return;
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += value ?? "";
    const parts = rest.split("\n");
    rest = parts.pop() ?? "";
    for (const part of parts) if (part !== "") take(JSON.parse(part));
    if (done) return;
  }
}

export function Talk({ run, name, stage }: { run: string; name: string; stage: string }) {
  const [prompt, setPrompt] = useState("Once upon a time");
  const [count, setCount] = useState(60);
  const [temperature, setTemperature] = useState(0);
  const [asked, setAsked] = useState<string | null>(null);
  const [answers, setAnswers] = useState<Record<Side, Answer>>({ original: NO_ANSWER, compressed: NO_ANSWER });
  const [state, setState] = useState("");
  const [error, setError] = useState<ErrorText | null>(null);
  const stop = useRef<AbortController | null>(null);
  useEffect(() => () => stop.current?.abort(), []);

  const take = (line: unknown) => {
    const found = obj(line);
    const side: Side = found.side === "original" ? "original" : "compressed";
    switch (found.kind) {
      case "state":
        setState(text(found.text));
        break;
      case "token":
        setState("");
        setAnswers((now) => ({
          ...now,
          [side]: {
            ...now[side],
            tokens: [
              ...now[side].tokens,
              { text: text(found.text), probability: num(found.probability), ms: num(found.ms) },
            ],
          },
        }));
        break;
      case "end":
        setAnswers((now) => ({
          ...now,
          [side]: {
            ...now[side],
            end: { tokens: num(found.tokens) ?? 0, seconds: num(found.seconds) ?? 0, reason: text(found.reason) },
          },
        }));
        break;
      case "error":
        setError({ what: text(found.what), where: text(found.where), fix: text(found.fix) });
        break;
    }
  };
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    stop.current?.abort();
    const control = new AbortController();
    stop.current = control;
    setAnswers({ original: NO_ANSWER, compressed: NO_ANSWER });
    setError(null);
    setAsked(prompt);
    setState("Asking");
    try {
      const response = await call(`/talk/${encodeURIComponent(run)}/${encodeURIComponent(name)}`, {
        method: "POST",
        body: JSON.stringify({ prompt, tokens: count, temperature }),
        signal: control.signal,
      });
      await lines(response, take);
    } catch (caught) {
      if (!control.signal.aborted) setError(asError(caught));
    } finally {
      if (stop.current === control) {
        stop.current = null;
        setState("");
      }
    }
  };
  const busy =
    state !== "" ||
    (asked !== null &&
      stop.current !== null &&
      (answers.original.end === null || answers.compressed.end === null) &&
      error === null);
  const parting = firstDifference(answers.original.tokens, answers.compressed.tokens);
  return (
    <div className="space-y-3">
      <form onSubmit={submit} className="flex flex-wrap items-end gap-3">
        <label className="min-w-64 flex-1 text-[0.85rem] font-medium">
          Prompt
          <textarea
            rows={2}
            required
            maxLength={2000}
            value={prompt}
            onChange={(event) => setPrompt(event.target.value)}
            className="field mt-1 block w-full font-normal"
          />
        </label>
        <label className="text-[0.85rem] font-medium">
          Tokens
          <input
            type="number"
            min={1}
            max={200}
            required
            value={count}
            onChange={(event) => setCount(Number(event.target.value))}
            className="field num mt-1 block w-20 font-normal"
          />
        </label>
        <label className="text-[0.85rem] font-medium">
          Temperature
          <input
            type="number"
            min={0}
            max={2}
            step={0.1}
            required
            value={temperature}
            onChange={(event) => setTemperature(Number(event.target.value))}
            className="field num mt-1 block w-24 font-normal"
          />
        </label>
        {busy ? (
          <Button
            icon="stop"
            onClick={() => {
              stop.current?.abort();
              stop.current = null;
              setState("");
              setAsked(null);
            }}
          >
            Stop
          </Button>
        ) : (
          <Button type="submit" kind="main" icon="play">
            Continue it
          </Button>
        )}
      </form>
      <p role="status" className="min-h-5 text-[0.85rem] text-soft first-letter:uppercase">
        {state}
        {state === "" &&
          answers.original.end !== null &&
          answers.compressed.end !== null &&
          (parting === null ? "Both say the same" : `The same for ${parting} tokens, then they part`)}
      </p>
      {error !== null && <ErrorBox error={error} />}
      <div className="grid gap-3 md:grid-cols-2">
        <Column
          title="Original"
          mark={BASELINE}
          prompt={asked}
          answer={answers.original}
          parting={parting}
          side="original"
        />
        <Column
          title="Compressed"
          mark={stage}
          prompt={asked}
          answer={answers.compressed}
          parting={parting}
          side="compressed"
        />
      </div>
      <p className="text-[0.8rem] text-soft">
        The darker a token’s ground, the less sure the model was of it. An outline marks the first token at which the
        two part.
      </p>
    </div>
  );
}

/** The first place at which two continuations differ, among those both have reached; null where they do not. */
function firstDifference(a: Token[], b: Token[]): number | null {
  const both = Math.min(a.length, b.length);
  for (let index = 0; index < both; index += 1) if (a[index]?.text !== b[index]?.text) return index;
  return null;
}

function Column({
  title,
  mark,
  prompt,
  answer,
  parting,
  side,
}: {
  title: string;
  mark: string;
  prompt: string | null;
  answer: Answer;
  parting: number | null;
  side: Side;
}) {
  return (
    <div className="rounded-md border border-line p-3" data-side={side}>
      <h3 className="mb-1.5 flex items-center gap-2 text-[0.88rem] font-semibold">
        <StageMark stage={mark} />
        {title}
        {answer.end !== null && (
          <span className="num ml-auto text-[0.8rem] font-normal text-soft">
            {answer.end.tokens} tokens, {seconds(answer.end.seconds)}, {answer.end.reason}
          </span>
        )}
      </h3>
      {prompt === null ? (
        <p className="text-[0.88rem] text-soft">Its continuation comes here</p>
      ) : (
        <p className="leading-7 whitespace-pre-wrap [overflow-wrap:anywhere]">
          <span className="text-soft">{prompt}</span>
          {answer.tokens.map((token, index) => (
            <span
              key={index}
              data-token
              title={`${percent(token.probability)}${token.ms === null ? "" : `, ${token.ms.toFixed(0)} ms`}`}
              className={`rounded-sm ${index === parting ? "outline-2 outline-poor" : ""}`}
              style={{
                background: `color-mix(in srgb, var(--fair) ${(28 * (1 - (token.probability ?? 1))).toFixed(0)}%, transparent)`,
              }}
            >
              {token.text}
            </span>
          ))}
        </p>
      )}
    </div>
  );
}
