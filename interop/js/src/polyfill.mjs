// js-libp2p needs Promise.withResolvers, which Node 20 does not have. Modules are evaluated in
// the order of their imports, so this one must be imported before any module of libp2p.
Promise.withResolvers ??= function withResolvers () {
  const deferred = {}
  deferred.promise = new this((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}
