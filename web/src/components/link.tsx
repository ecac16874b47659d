/** A link to another page, which is fetched when somebody goes there: no page costs a slow line what nobody asked for. */
import NextLink from "next/link";
import type { ComponentProps } from "react";

export function Link(props: ComponentProps<typeof NextLink>) {
  return <NextLink prefetch={false} {...props} />;
}
