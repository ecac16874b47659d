import type { Metadata } from "next";
import { Suspense } from "react";

import { RunPage } from "@/components/run/page";
import { EARLY } from "@/lib/early";

export const metadata: Metadata = { title: "A run" };

export default function Page() {
  return (
    <>
      <script dangerouslySetInnerHTML={{ __html: EARLY }} />
      <Suspense>
        <RunPage />
      </Suspense>
    </>
  );
}
