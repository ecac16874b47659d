import type { Metadata } from "next";

import { RunList } from "@/components/list";

export const metadata: Metadata = { title: "Runs" };

export default function Page() {
  return <RunList />;
}
