/** One artifact: where its bytes are, tensor by tensor, and a talk with it. */
"use client";

import dynamic from "next/dynamic";
import { useSearchParams } from "next/navigation";
import { useEffect, useMemo, useState } from "react";

import { Empty, ErrorBox, Part, Skeleton, StageMark } from "@/components/basics";
import { Link } from "@/components/link";
import { figure, integer, settings, size, times } from "@/lib/format";
import { asError, get } from "@/lib/rest";
import { stageTitle } from "@/lib/stages";
import type { ArtifactDetail, ArtifactLine, Artifacts, ErrorText } from "@/lib/api";
import { Talk } from "./talk";

const Bytes = dynamic(() => import("./bytes").then((found) => found.Bytes), {
  ssr: false,
  loading: () => <Skeleton className="h-80" />,
});

export function ArtifactPage() {
  const search = useSearchParams();
  const run = search.get("run") ?? "";
  const name = search.get("name") ?? "";
  if (run === "" || name === "") {
    return (
      <ErrorBox
        error={{
          what: "no artifact is named",
          where: "the address of this page",
          fix: "open it from the page of its run",
        }}
      />
    );
  }
  return <Artifact key={`${run} ${name}`} run={run} name={name} />;
}

function Artifact({ run, name }: { run: string; name: string }) {
  const [found, setFound] = useState<ArtifactDetail | null>(null);
  const [others, setOthers] = useState<ArtifactLine[]>([]);
  const [error, setError] = useState<ErrorText | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    const path = `/artifacts/${encodeURIComponent(run)}`;
    get<ArtifactDetail>(`${path}/${encodeURIComponent(name)}`, stop.signal).then(
      (answer) => {
        setFound(answer);
        document.title = `${answer.name} · Phase 8`;
      },
      (caught) => stop.signal.aborted || setError(asError(caught)),
    );
    get<Artifacts>(path, stop.signal).then(
      (answer) => setOthers(answer.artifacts),
      () => undefined,
    );
    return () => stop.abort();
  }, [run, name]);
  return (
    <div className="space-y-3 sm:space-y-4">
      <div>
        <p className="text-[0.88rem]">
          <Link className="underline underline-offset-2" href={`/run/?id=${run}`}>
            The run
          </Link>
          {others
            .filter((other) => other.name !== name)
            .map((other) => (
              <Link
                key={other.name}
                className="ml-4 underline underline-offset-2"
                href={`/artifact/?run=${run}&name=${encodeURIComponent(other.name)}`}
              >
                {other.name} ({times(other.ratio)})
              </Link>
            ))}
        </p>
        <h1 className="mt-1 flex items-center gap-2 text-xl font-semibold">
          {found && <StageMark stage={found.stage} />}
          Artifact {name}
        </h1>
        {found !== null && (
          <dl className="mt-1 flex flex-wrap gap-x-5 gap-y-1 text-[0.9rem]">
            <Fact name="stage" value={stageTitle(found.stage)} />
            <Fact name="size" value={size(found.bytes)} />
            <Fact name="ratio" value={times(found.ratio)} />
            <Fact name="against 16 bits" value={times(found.ratio_vs_16bit)} />
            <Fact name="bits per weight" value={figure(found.bits_per_weight)} />
            <Fact name="parameters" value={integer(found.parameters)} />
          </dl>
        )}
      </div>
      {error !== null && <ErrorBox error={error} />}
      {error === null && (
        <>
          <Part id="bytes" title="Where the bytes are" hint="everything in the file is counted">
            {found === null ? <Skeleton className="h-80" /> : <Bytes tree={found.tree} stage={found.stage} />}
            {found !== null && found.beside.length > 0 && (
              <p className="mt-2 text-[0.82rem] text-soft">
                Beside it, not counted: {found.beside.map((file) => `${file.name} ${size(file.bytes)}`).join(", ")}
              </p>
            )}
          </Part>
          <Part
            id="talk"
            title="Talk to it"
            hint="the same prompt to the original and to this artifact, token by token"
          >
            <Talk run={run} name={name} stage={found?.stage ?? ""} />
          </Part>
          <Part id="tensors" title="Tensors" {...(found === null ? {} : { hint: `${found.tensors.length}` })}>
            {found === null ? <Skeleton /> : <Tensors found={found} />}
          </Part>
        </>
      )}
    </div>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div className="flex gap-1.5" data-fact={name}>
      <dt className="text-soft">{name}</dt>
      <dd className="num font-medium">{value}</dd>
    </div>
  );
}

function Tensors({ found }: { found: ArtifactDetail }) {
  const [query, setQuery] = useState("");
  const rows = useMemo(() => {
    const wanted = query.trim().toLowerCase();
    return found.tensors.filter((tensor) =>
      `${tensor.name} ${tensor.codec} ${settings(tensor.settings)}`.toLowerCase().includes(wanted),
    );
  }, [found, query]);
  return (
    <>
      <label className="mb-2 block w-64 max-w-full">
        <span className="sr-only">Search the tensors</span>
        <input
          type="search"
          placeholder="q_proj, vptq"
          value={query}
          onChange={(event) => setQuery(event.target.value)}
          className="field w-full"
        />
      </label>
      {rows.length === 0 ? (
        <Empty>No tensor matches</Empty>
      ) : (
        <div className="max-h-112 overflow-auto" tabIndex={0} role="region" aria-label="Tensors of the artifact">
          <table className="w-full border-separate border-spacing-0 text-[0.85rem]">
            <caption className="sr-only">Every tensor with its shape, codec and rate</caption>
            <thead className="sticky top-0 bg-card">
              <tr className="text-left text-soft">
                <th scope="col" className="cell font-medium">
                  Tensor
                </th>
                <th scope="col" className="cell text-right font-medium">
                  Shape
                </th>
                <th scope="col" className="cell font-medium">
                  Codec
                </th>
                <th scope="col" className="cell text-right font-medium">
                  Bits per weight, packed
                </th>
                <th scope="col" className="cell font-medium">
                  Settings
                </th>
              </tr>
            </thead>
            <tbody>
              {rows.slice(0, 500).map((tensor) => (
                <tr key={tensor.name}>
                  <th scope="row" className="cell text-left font-mono text-[0.8rem] font-normal">
                    {tensor.name}
                  </th>
                  <td className="cell num text-right">{tensor.shape.join(" × ")}</td>
                  <td className="cell whitespace-nowrap">{tensor.codec}</td>
                  <td className="cell num text-right">{figure(tensor.packed_bits_per_weight)}</td>
                  <td className="cell text-[0.8rem] text-soft">
                    {Object.keys(tensor.settings).length === 0 ? "" : settings(tensor.settings)}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      {rows.length > 500 && <p className="mt-1 text-[0.82rem] text-soft">{rows.length - 500} more; search for them</p>}
    </>
  );
}
