import type { Metadata } from "next";
import { Suspense } from "react";

import { ComparePage } from "@/components/compare/page";

export const metadata: Metadata = { title: "Comparison" };

export default function Page() {
  return (
    <Suspense>
      <ComparePage />
    </Suspense>
  );
}
