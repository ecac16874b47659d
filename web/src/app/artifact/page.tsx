import type { Metadata } from "next";
import { Suspense } from "react";

import { ArtifactPage } from "@/components/artifact/page";

export const metadata: Metadata = { title: "Artifact" };

export default function Page() {
  return (
    <Suspense>
      <ArtifactPage />
    </Suspense>
  );
}
