import type { Metadata } from "next";
import { Suspense } from "react";

import { RunPage } from "@/components/run/page";

export const metadata: Metadata = { title: "A run" };

export default function Page() {
  return (
    <Suspense>
      <RunPage />
    </Suspense>
  );
}
