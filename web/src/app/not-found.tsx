import { Link } from "@/components/link";

export default function NotFound() {
  return (
    <div className="mx-auto max-w-md py-16 text-center">
      <h1 className="text-lg font-semibold">There is no such page</h1>
      <p className="mt-2">
        <Link href="/" className="underline">
          All runs
        </Link>
      </p>
    </div>
  );
}
