/** The form that starts a run. What may be set, and within which bounds, comes from the server. */
"use client";

import { useRouter } from "next/navigation";
import { useEffect, useMemo, useState, type FormEvent } from "react";

import { Button, ErrorBox, Skeleton } from "@/components/basics";
import type { ErrorText, RunSummary, Setting, SettingsOf, Startable, Started } from "@/lib/api";
import { figure } from "@/lib/format";
import { asError, get, send } from "@/lib/rest";
import { stageTitle } from "@/lib/stages";

type Value = boolean | number | string | null;

const REMEMBERED = "phase8-start";
const GATE_STAGES = ["seedlm", "vptq", "hyper"];

interface Chosen {
  variant: string;
  model: string;
  experiment: string;
  settings: Record<string, Value>;
}

function remembered(): Chosen {
  try {
    const found = JSON.parse(localStorage.getItem(REMEMBERED) ?? "null") as Chosen | null;
    if (found !== null && typeof found.settings === "object") return found;
  } catch {
    // damaged: begin anew
  }
  return { variant: "default", model: "", experiment: "", settings: {} };
}

export function StartForm({ from, done }: { from: RunSummary | null; done: () => void }) {
  const [offer, setOffer] = useState<Startable | null>(null);
  const [error, setError] = useState<ErrorText | null>(null);
  const [chosen, setChosen] = useState<Chosen>(remembered);
  const [search, setSearch] = useState("");
  const [busy, setBusy] = useState(false);
  const router = useRouter();

  const { variant, experiment } = chosen;
  useEffect(() => {
    const stop = new AbortController();
    const asked = new URLSearchParams({ variant, experiment });
    get<Startable>(`/settings?${asked}`, stop.signal).then(setOffer, (caught) => {
      if (stop.signal.aborted) return;
      if (variant === "default" && experiment === "") setError(asError(caught));
      else setChosen((now) => ({ ...now, variant: "default", experiment: "" })); // remembered, and gone since
    });
    return () => stop.abort();
  }, [variant, experiment]);

  const known = useMemo(() => new Map((offer?.settings ?? []).map((setting) => [setting.name, setting])), [offer]);
  const valueOf = (name: string): Value =>
    name in chosen.settings ? (chosen.settings[name] as Value) : (known.get(name)?.default ?? null);
  const change = (name: string, value: Value) => {
    const settings = { ...chosen.settings };
    if (value === known.get(name)?.default) delete settings[name];
    else settings[name] = value;
    setChosen({ ...chosen, settings });
  };
  const fill = async () => {
    if (from === null) return;
    try {
      const { settings } = await get<SettingsOf>(`/runs/${from.run}/config`);
      const variant = offer?.variants.includes(from.compressor) ? from.compressor : "default";
      const usual = await get<Startable>(`/settings?${new URLSearchParams({ variant })}`);
      const taken: Record<string, Value> = {};
      for (const setting of usual.settings) {
        const value = settings[setting.name];
        if (value !== undefined && (value === null || typeof value !== "object") && value !== setting.default)
          taken[setting.name] = value as Value;
      }
      setChosen({
        model: offer?.models.includes(from.model) ? from.model : "",
        variant,
        experiment: "",
        settings: taken,
      });
    } catch (caught) {
      setError(asError(caught));
    }
  };
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const settings = Object.fromEntries(Object.entries(chosen.settings).filter(([name]) => known.has(name)));
    localStorage.setItem(REMEMBERED, JSON.stringify({ ...chosen, settings }));
    try {
      const { job } = await send<Started>("POST", "/start", {
        variant: chosen.variant,
        ...(offer?.models.includes(chosen.model) ? { model: chosen.model } : {}),
        experiment: chosen.experiment || null,
        settings,
      });
      done();
      router.push(`/run/?id=${job}`);
    } catch (caught) {
      setError(asError(caught));
      setBusy(false);
    }
  };

  if (offer === null) return error === null ? <Skeleton className="h-72" /> : <ErrorBox error={error} />;
  if (!offer.available) {
    return (
      <ErrorBox
        error={{
          what: "nothing can be started from here",
          where: "the directory in which the dashboard was started",
          fix: "start the dashboard in a checkout of the project, beside run.py",
        }}
      />
    );
  }
  const retries = Number(valueOf("max_retries") ?? 0);
  const field = (name: string, label: string) => {
    const setting = known.get(name);
    return setting === undefined ? null : (
      <Field key={name} setting={setting} label={label} value={valueOf(name)} change={(value) => change(name, value)} />
    );
  };
  const wanted = search.trim().toLowerCase();
  const found =
    wanted === ""
      ? []
      : offer.settings
          .filter((setting) => `${setting.name} ${setting.help}`.toLowerCase().includes(wanted))
          .slice(0, 12);
  const changed = Object.entries(chosen.settings).filter(([name]) => known.has(name));
  return (
    <form onSubmit={submit} className="space-y-4">
      <div className="grid gap-3 sm:grid-cols-3">
        <label className="block text-[0.85rem] font-medium">
          Model
          <select
            className="field mt-1 block w-full font-normal"
            value={offer.models.includes(chosen.model) ? chosen.model : offer.models[0]}
            onChange={(event) => setChosen({ ...chosen, model: event.target.value })}
          >
            {offer.models.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <label className="block text-[0.85rem] font-medium">
          Variant
          <select
            className="field mt-1 block w-full font-normal"
            value={chosen.variant}
            onChange={(event) => setChosen({ ...chosen, variant: event.target.value })}
          >
            {offer.variants.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <label className="block text-[0.85rem] font-medium">
          Experiment
          <select
            className="field mt-1 block w-full font-normal"
            value={chosen.experiment}
            onChange={(event) => setChosen({ ...chosen, experiment: event.target.value })}
          >
            <option value="">none</option>
            {offer.experiments.map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
      </div>

      <fieldset>
        <legend className="mb-1.5 text-[0.85rem] font-semibold">When a gate fails</legend>
        <div className="grid items-end gap-3 sm:grid-cols-3">
          {known.has("max_retries") && (
            <>
              <Check
                label="Try again by itself"
                checked={retries > 0}
                change={(on) => change("max_retries", on ? 1 : 0)}
              />
              <label className="block text-[0.85rem] font-medium">
                Retries (0 to 5)
                <input
                  type="number"
                  min={0}
                  max={5}
                  step={1}
                  value={retries}
                  onChange={(event) => change("max_retries", Math.round(Number(event.target.value)))}
                  className="field num mt-1 block w-full font-normal"
                />
              </label>
            </>
          )}
          {field("fallback", "Fallback")}
        </div>
      </fieldset>

      <fieldset>
        <legend className="mb-1.5 text-[0.85rem] font-semibold">Thresholds, as fractions</legend>
        <div className="grid grid-cols-2 gap-3 sm:grid-cols-4">
          {GATE_STAGES.map((stage) => field(`gates.core.${stage}`, stageTitle(stage)))}
          {field("max_accuracy_loss", "Largest loss in all")}
        </div>
      </fieldset>

      <fieldset>
        <legend className="mb-1.5 text-[0.85rem] font-semibold">Stages</legend>
        <div className="flex flex-wrap gap-x-6 gap-y-2">
          {GATE_STAGES.filter((stage) => known.has(`${stage}.enabled`)).map((stage) => (
            <Check
              key={stage}
              label={stageTitle(stage)}
              checked={valueOf(`${stage}.enabled`) !== false}
              change={(on) => change(`${stage}.enabled`, on)}
            />
          ))}
        </div>
      </fieldset>

      <div>
        <label className="block text-[0.85rem] font-semibold">
          Any other setting
          <input
            type="search"
            value={search}
            onChange={(event) => setSearch(event.target.value)}
            placeholder="codebook, samples, seed"
            className="field mt-1 block w-full font-normal"
          />
        </label>
        {wanted !== "" && (
          <div
            className="mt-2 grid max-h-64 gap-3 overflow-y-auto rounded-md border border-line p-3 sm:grid-cols-2"
            tabIndex={0}
            role="group"
            aria-label="Settings found"
          >
            {found.map((setting) => (
              <Field
                key={setting.name}
                setting={setting}
                label={setting.name}
                value={valueOf(setting.name)}
                change={(value) => change(setting.name, value)}
              />
            ))}
            {found.length === 0 && <p className="text-[0.85rem] text-soft">No such setting</p>}
          </div>
        )}
      </div>

      {changed.length > 0 && (
        <p className="text-[0.85rem]">
          <span className="text-soft">Changed: </span>
          <span className="font-mono text-[0.8rem] [overflow-wrap:anywhere]">
            {changed.map(([name, value]) => `${name}=${figure(value)}`).join(" ")}
          </span>
        </p>
      )}
      {error && <ErrorBox error={error} />}
      <div className="flex flex-wrap gap-2">
        <Button type="submit" kind="main" icon="play" disabled={busy}>
          {busy ? "Starting" : "Start the run"}
        </Button>
        {from !== null && <Button onClick={fill}>Take this run’s settings</Button>}
        {changed.length > 0 && (
          <Button onClick={() => setChosen({ ...chosen, settings: {} })}>Back to the defaults</Button>
        )}
        <Button onClick={done}>Cancel</Button>
      </div>
    </form>
  );
}

function Check({ label, checked, change }: { label: string; checked: boolean; change: (on: boolean) => void }) {
  return (
    <label className="inline-flex min-h-[2.1rem] items-center gap-2 text-[0.9rem]">
      <input type="checkbox" checked={checked} onChange={(event) => change(event.target.checked)} className="size-4" />
      {label}
    </label>
  );
}

function Field({
  setting,
  label,
  value,
  change,
}: {
  setting: Setting;
  label: string;
  value: Value;
  change: (value: Value) => void;
}) {
  if (setting.type === "bool") return <Check label={label} checked={value === true} change={change} />;
  const bounds = {
    ...(setting.low === null ? {} : { min: setting.low }),
    ...(setting.high === null ? {} : { max: setting.high }),
  };
  const numeric = setting.type === "int" || setting.type === "float";
  return (
    <label className="block min-w-0 text-[0.85rem] font-medium" title={setting.help}>
      <span className="block truncate">{label}</span>
      {setting.type === "choice" ? (
        <select
          className="field mt-1 block w-full font-normal"
          value={String(value ?? "")}
          onChange={(event) => change(event.target.value || null)}
        >
          {setting.nullable && <option value="">none</option>}
          {(setting.choices ?? []).map((choice) => (
            <option key={choice}>{choice}</option>
          ))}
        </select>
      ) : (
        <input
          type={numeric ? "number" : "text"}
          step={setting.type === "int" ? 1 : "any"}
          {...bounds}
          required={!setting.nullable}
          value={value === null ? "" : String(value)}
          onChange={(event) => {
            const written = event.target.value;
            if (written === "") change(setting.nullable ? null : numeric ? setting.default : "");
            else change(numeric ? Number(written) : written);
          }}
          className="field num mt-1 block w-full font-normal"
        />
      )}
    </label>
  );
}
